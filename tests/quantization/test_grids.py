"""Codes and back: what any weight may rely on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.quantization.codebook import nearest_level, normal_levels
from r1lite.quantization.coding import Codes, code_shapes, decode, encode
from r1lite.quantization.integers import (
    TINY,
    dequantise_integers,
    quantise_integers,
    round_up,
)
from r1lite.quantization.packing import pack_nibbles, unpack_nibbles
from r1lite.quantization.schemes import NAMES, scheme_of

SHAPES = st.sampled_from([(1, 32), (3, 64), (130, 160), (2, 5, 96)])
WHOLE = [n for n in NAMES if n.startswith("int")]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Of many sizes, with outliers, and with rows and groups of zeros."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    w = torch.randn(draw(SHAPES), generator=generator)
    w[..., ::7] *= draw(st.sampled_from([1.0, 40.0, 0.0]))
    w[..., :32] *= draw(st.sampled_from([1.0, 0.0]))
    return w * 10.0 ** draw(st.integers(-30, 30)) + draw(st.sampled_from([0.0, 2.0]))


def steps(given: Codes, w: Tensor) -> Tensor:
    """The scale of every number of w."""
    each = w.shape[-1] // given.scales.shape[-1]
    return given.scales.float().repeat_interleave(each, -1)


@settings(max_examples=60)
@given(weights(), st.sampled_from(WHOLE))
def test_whole_numbers_are_off_by_half_a_step_at_most(w: Tensor, name: str) -> None:
    scheme = scheme_of(name)
    given = encode(w, scheme)
    off = (decode(given, scheme) - w).abs()
    assert bool((off <= steps(given, w) * 0.5001 + 1e-6 * w.abs()).all())


@settings(max_examples=40)
@given(weights())
def test_a_level_of_the_codebook_is_off_by_half_a_gap_at_most(w: Tensor) -> None:
    scheme = scheme_of("nf4-g32")
    given = encode(w, scheme)
    gap = (normal_levels()[1:] - normal_levels()[:-1]).max() / 2
    off = (decode(given, scheme) - w).abs()
    assert bool((off <= steps(given, w) * (gap * 1.0001)).all())


@settings(max_examples=40)
@given(weights())
def test_fp8_keeps_three_bits_behind_the_first(w: Tensor) -> None:
    scheme = scheme_of("fp8-block")
    given = encode(w, scheme)
    off = (decode(given, scheme) - w).abs()
    blocks = given.scales.repeat_interleave(128, -2).repeat_interleave(128, -1)
    step = blocks[..., : w.shape[-2], : w.shape[-1]] * 2**-10  # of subnormal codes
    assert bool((off <= torch.maximum(w.abs() / 16, step) * 1.0001 + TINY).all())


@settings(max_examples=40)
@given(weights(), st.sampled_from(NAMES), st.integers(-20, 20))
def test_twice_the_weight_is_twice_the_scale(w: Tensor, name: str, power: int) -> None:
    assume(float(w.abs().max()) < 1e25 and float(w.abs().max()) > 1e-25)
    scheme = scheme_of(name)
    one, other = encode(w, scheme), encode(w * 2.0**power, scheme)
    assert torch.equal(one.codes.float(), other.codes.float())
    used = decode(one, scheme).abs().sum(-1) > 0
    assert torch.equal(decode(one, scheme) * 2.0**power, decode(other, scheme))
    assert bool(used.any())


@settings(max_examples=40)
@given(weights(), st.sampled_from(NAMES))
def test_zero_stays_zero_exactly(w: Tensor, name: str) -> None:
    scheme = scheme_of(name)
    w[..., 3::5] = 0
    assert bool((decode(encode(w, scheme), scheme)[..., 3::5] == 0).all())
    nothing = torch.zeros_like(w)
    assert torch.equal(decode(encode(nothing, scheme), scheme), nothing)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [3.3e38, 1e-38, 1e-44], ids=["huge", "small", "tiny"])
def test_the_ends_of_float32_stay_finite(name: str, size: float) -> None:
    w = torch.randn(4, 64).clamp(-1, 1) * size
    w[1], w[2, 5] = 0, size
    scheme = scheme_of(name)
    restored = decode(encode(w, scheme), scheme)
    assert bool(torch.isfinite(restored).all())
    assert float((restored - w).abs().max()) <= max(0.2 * size, 2 * TINY)


@pytest.mark.parametrize("name", ["int8", "int4-g32", "nf4-g32", "fp8-block"])
def test_what_was_rounded_is_not_rounded_again(name: str) -> None:
    scheme = scheme_of(name)
    once = decode(encode(torch.randn(64, 128), scheme), scheme)
    again = decode(encode(once, scheme), scheme)
    assert torch.allclose(once, again, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(1, 3))
def test_packing_is_exact(codes: list[int], rows: int) -> None:
    given = torch.tensor([codes + codes] * rows)
    packed = pack_nibbles(given)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, len(codes))
    assert torch.equal(unpack_nibbles(packed), given.to(torch.uint8))


def test_packing_by_hand() -> None:
    assert pack_nibbles(torch.tensor([1, 2, 15, 0])).tolist() == [0x21, 0x0F]
    with pytest.raises(R1Error, match="3, an odd number"):
        pack_nibbles(torch.tensor([1, 2, 3]))


def test_a_group_by_hand() -> None:
    w = torch.tensor([[7.0, -3.0, 0.6, 0.0, 14.0, 1.0, -2.0, 3.0]])
    codes, scales, zeros = quantise_integers(w, 4, 4)
    assert codes.tolist() == [[7, -3, 1, 0, 7, 0, -1, 2]] and zeros is None
    assert scales.tolist() == [[1.0, 2.0]]
    codes, scales, zeros = quantise_integers(w + 8, 4, 4, symmetric=False)
    assert zeros is not None and zeros.tolist() == [[0.0, 0.0]]  # 0 is the lowest
    assert torch.allclose(scales, torch.tensor([[1.0, 22 / 15]]))
    assert codes.tolist() == [[15, 5, 9, 8, 15, 6, 4, 8]]
    assert dequantise_integers(codes, scales, zeros)[0, :2].tolist() == [15.0, 5.0]


def test_a_loud_group_does_not_crush_the_others() -> None:
    w = torch.randn(64, 128)
    w[:, :32] *= 100
    row, grouped = scheme_of("int8"), scheme_of("int8-g32")
    off = [(decode(encode(w, s), s) - w)[:, 32:].norm() for s in (row, grouped)]
    assert off[1] < off[0] / 30


@given(st.floats(1e-30, 1e30))
def test_scales_are_rounded_up_never_down(scale: float) -> None:
    given = torch.tensor([scale])
    up = round_up(given, torch.bfloat16).float()
    assert given <= up <= given * (1 + 2**-7)
    assert bool(round_up(torch.tensor([3.4e38]), torch.bfloat16).isfinite())


def test_levels_of_the_normal_distribution() -> None:
    """Table of QLoRA's appendix E, to its digits."""
    levels = normal_levels()
    assert len(levels) == 16 and bool((levels[1:] > levels[:-1]).all())
    assert levels[7] == 0 and levels[0] == -1 and levels[-1] == 1
    published = torch.tensor([-0.6961928, -0.5250731, 0.0795803, 0.1609302, 0.7229568])
    assert torch.allclose(levels[[1, 2, 8, 9, 14]], published, atol=1e-4)
    assert nearest_level(levels).tolist() == list(range(16))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(6, 64), (130, 160), (3, 260, 192)])
def test_shapes_are_known_beforehand(name: str, shape: tuple[int, ...]) -> None:
    scheme = scheme_of(name)
    made = encode(torch.randn(shape), scheme, parts=2)
    want = code_shapes(scheme, shape, parts=2)
    got = {
        k: (tuple(t.shape), t.dtype) for k, t in made._asdict().items() if t is not None
    }
    assert got == want


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    w = torch.ones(2, 32)
    w[1, 3] = bad
    for name in NAMES:
        with pytest.raises(R1Error, match=r"mine: holds NaN or infinity; .*earlier"):
            encode(w, scheme_of(name), where="mine")
