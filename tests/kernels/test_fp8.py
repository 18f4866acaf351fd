"""FP8 kernels in the interpreter: the same bits as torch's own casts, any shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels import fp8_gemm
from r1lite.kernels.choose import Tile, jit, tl
from r1lite.kernels.fp8 import (
    _act_quant,
    _decode,
    _encode,
    _weight_dequant,
    act_quant,
    weight_dequant,
)
from r1lite.kernels.fp8_gemm import _fp8_mm, fp8_mm, fp8_mm_reference
from r1lite.precision.fp8 import E4M3, Fp8Recipe, dequantise, quantise

pytestmark = pytest.mark.usefixtures("kernels_on")
SIZE = st.integers(0, 300)


@jit
def cast(x, y, n, BACK: tl.constexpr, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    v = tl.load(x + at, mask=at < n, other=0)
    tl.store(y + at, _decode(v) if BACK else _encode(v), mask=at < n)


def through(x: Tensor, back: bool) -> Tensor:
    y = torch.empty(x.shape, dtype=torch.float16 if back else torch.uint8)
    cast[(-(-x.numel() // 4096),)](x, y, x.numel(), back, 4096)
    return y


def test_every_code_is_read_as_torch_reads_it() -> None:
    codes = torch.arange(256).to(torch.uint8)
    wanted = codes.view(E4M3).to(torch.float16)
    torch.testing.assert_close(through(codes, True), wanted, rtol=0, atol=0,
                               equal_nan=True)  # fmt: skip


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    """Every pattern of float32's upper 16 bits, beside ties and their neighbours."""
    upper = torch.arange(2**16) << 16
    bits = torch.cat([upper + low for low in (0, 1, 0xFFFF, 0x8000)])
    x = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
    x = x.view(torch.float32)
    found = through(x, False)
    wanted = x.clamp(-448, 448).to(E4M3).view(torch.uint8)
    assert torch.equal(found, wanted)


@settings(max_examples=20)
@given(st.integers(0, 5), SIZE, st.booleans(), st.sampled_from(["w", "h"]))
def test_act_quant(rows: int, n: int, power: bool, kind: str) -> None:
    x = torch.randn(rows, n) * 10 ** torch.linspace(-4, 3, max(1, n))[:n]
    x = x.half() if kind == "h" else x
    codes, scales = act_quant(x, power)
    wanted, wanted_scales = quantise(x, (1, 128), power)
    assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(scales, wanted_scales)


def test_a_tile_of_zeros_and_a_number_that_is_none() -> None:
    x = torch.zeros(2, 130)
    x[1, 129] = float("nan")
    codes, scales = act_quant(x)
    assert torch.equal(scales[0], torch.ones(2))
    restored = dequantise(codes, scales, (1, 128))
    assert restored[1, 129].isnan()
    assert not restored.flatten()[:-1].any()


@pytest.mark.parametrize("power", [False, True])
def test_no_number_among_numbers(power: bool) -> None:
    """Its tile has the scale 1, the next tile its own."""
    x = torch.randn(3, 256) * 1e3
    x[0, 5] = x[1, 200] = float("nan")
    x[2, :128] = 1e-45  # divided by 448 it is 0
    codes, scales = act_quant(x, power)
    wanted, wanted_scales = quantise(x, (1, 128), power)
    assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(scales, wanted_scales)
    assert (scales == 1).tolist() == [[True, False], [False, True], [True, False]]


def test_rows_of_a_wider_tensor() -> None:
    wide = torch.randn(4, 400)
    codes, scales = act_quant(wide[:, 70:270])
    wanted = quantise(wide[:, 70:270], (1, 128))
    assert torch.equal(codes.float(), wanted[0].float())
    assert torch.equal(scales, wanted[1])


@settings(max_examples=20)
@given(SIZE, SIZE, st.sampled_from([torch.float32, torch.float16]))
def test_weight_dequant(out: int, n: int, dtype: torch.dtype) -> None:
    codes, scales = quantise(torch.randn(out, n), (128, 128))
    found = weight_dequant(codes, scales, dtype)
    assert torch.equal(found, dequantise(codes, scales, (128, 128)).to(dtype))


@settings(max_examples=15)
@given(st.integers(0, 70), st.integers(0, 200), SIZE)
def test_fp8_mm(rows: int, n: int, k: int) -> None:
    a = act_quant(torch.randn(rows, k))
    w = quantise(torch.randn(n, k), (128, 128))
    found = fp8_mm(*a, *w, torch.float32)
    wanted = fp8_mm_reference(*a, *w, torch.float32)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tile", sorted(set(fp8_gemm.TILES.values())))
def test_the_tiles_of_every_chip(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fp8_gemm.TILES, "sm_80", tile)
    a = act_quant(torch.randn(150, 260))
    w = quantise(torch.randn(270, 260), (128, 128))
    found = fp8_mm(*a, *w, torch.float32)
    wanted = fp8_mm_reference(*a, *w, torch.float32)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert 128 % tile.n == 0  # one block's scale serves the tile


def test_one_outlier_spoils_its_own_tile_only() -> None:
    """What 1 x 128 scales are for, and the same as chapter 5's simulation."""
    x, w = torch.randn(6, 256), torch.randn(40, 256)
    x[:, 200] = 3e4
    recipe = Fp8Recipe()
    wanted = recipe.activation(x) @ recipe.weight(w).t()
    found = fp8_mm(*act_quant(x), *quantise(w, (128, 128)), torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.05)
    left = dequantise(*act_quant(x), (1, 128))[:, :128]
    assert ((left - x[:, :128]).abs() <= x[:, :128].abs() / 16 + 1e-2).all()


def test_the_ops_are_well_formed() -> None:
    x, w = torch.randn(3, 140), quantise(torch.randn(20, 140), (128, 128))
    torch.library.opcheck(_act_quant, (x, False))
    # torch's own look at changed inputs multiplies them, which it cannot for FP8.
    looks = "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"
    a = act_quant(x)
    before = [t.view(torch.uint8).clone() for t in (*a, *w)]
    torch.library.opcheck(_weight_dequant, (*w, torch.float32), test_utils=looks)
    torch.library.opcheck(_fp8_mm, (*a, *w, torch.float32), test_utils=looks)
    for t, old in zip((*a, *w), before, strict=True):
        assert torch.equal(t.view(torch.uint8), old)


def test_what_does_not_fit() -> None:
    codes, scales = quantise(torch.randn(20, 140), (128, 128))
    with pytest.raises(R1Error, match="act_quant: x"):
        act_quant(torch.randn(3))
    with pytest.raises(R1Error, match="weight_dequant: codes"):
        weight_dequant(codes, scales.T)
    with pytest.raises(R1Error, match="weight_dequant: codes"):
        weight_dequant(codes.float(), scales)
    a = act_quant(torch.randn(3, 140))
    with pytest.raises(R1Error, match="fp8_mm: a"):
        fp8_mm(*a, codes[:, :128], scales)
    with pytest.raises(R1Error, match=r"give \(3, 2\) and \(1, 2\)"):
        fp8_mm(*a, codes, scales.T)
