"""Products with int8 and int4 weights equal the quantiser's own decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.errors import R1Error
from r1lite.kernels import dequant
from r1lite.kernels.choose import jit, tl
from r1lite.kernels.dequant import _dequant_mm, dequant_mm, dequant_mm_reference
from r1lite.quantization.coding import Codes, decode, encode
from r1lite.quantization.schemes import scheme_of

pytestmark = pytest.mark.usefixtures("kernels_on")

# A row and a group; both widths of code; groups that are no power of two.
SCHEMES = (
    "int8",
    "int8-g32",
    "int8-g24-asym",
    "int8-g17",
    "int4",
    "int4-g32",
    "int4-g32-asym",
    "int4-g24-asym",
    "int4-g17-asym",  # two groups share a byte: the reference computes
)
TOL = {torch.float32: 2e-5, torch.float16: 4e-3}


@settings(max_examples=40)
@given(
    st.sampled_from(SCHEMES),
    st.integers(0, 20),  # rows: none, one (a GEMV), few, more than a small tile
    st.integers(1, 70),  # outputs
    st.integers(1, 5),  # groups
    st.sampled_from(list(TOL)),
)
def test_any_shape(
    name: str, rows: int, out: int, groups: int, dtype: torch.dtype
) -> None:
    scheme = scheme_of(name)
    inputs = groups * (scheme.group or 26)
    inputs *= 1 + (inputs % 2 if scheme.bits == 4 else 0)
    w = torch.randn(out, inputs) / inputs**0.5
    codes = encode(w, scheme)
    x = torch.randn(rows, inputs, dtype=dtype)
    wanted = x.double() @ decode(codes, scheme).double().t()
    tol = TOL[dtype]
    for result in (dequant_mm(x, *codes), dequant_mm_reference(x, *codes)):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), wanted, atol=tol, rtol=tol)


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("name", ["int8", "int4-g128-asym"])
def test_a_row_longer_than_a_step(name: str, rows: int) -> None:
    scheme = scheme_of(name)
    codes = encode(torch.randn(5, 2304) / 48, scheme)
    x = torch.randn(rows, 2304)
    wanted = x.double() @ decode(codes, scheme).double().t()
    found = dequant_mm(x, *codes)
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)


def test_zero_points_need_not_be_whole() -> None:
    """HQQ's are not (chapter 12)."""
    whole = encode(torch.randn(9, 64), scheme_of("int4-g32-asym"))
    assert whole.zeros is not None
    codes = Codes(whole.codes, whole.scales, whole.zeros + 0.25)
    for rows in (1, 4):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(
            dequant_mm(x, *codes), dequant_mm_reference(x, *codes),
            atol=2e-5, rtol=2e-5,
        )  # fmt: skip


def test_codes_of_one_expert_are_read_where_they_lie() -> None:
    scheme = scheme_of("int4-g32")
    codes = encode(torch.randn(3, 20, 64), scheme)
    x = torch.randn(4, 64)
    found = dequant_mm(x, codes.codes[1], codes.scales[1])
    wanted = x @ decode(codes, scheme)[1].t()
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_gradient_of_the_tokens(rows: int) -> None:
    """An adapter below a quantised layer is trained through it (QLoRA)."""
    scheme = scheme_of("int4-g32-asym")
    codes = encode(torch.randn(12, 64), scheme)
    x, dy = torch.randn(rows, 64, requires_grad=True), torch.randn(rows, 12)
    dequant_mm(x, *codes).backward(dy)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dy @ decode(codes, scheme))


@jit
def widen(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at).to(tl.float32))


def test_the_interpreter_reads_bfloat16_right_but_for_subnormal_numbers() -> None:
    """Scales are bfloat16, and none is subnormal (`r1lite.quantization.integers`)."""
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    found = torch.empty(2**16)
    widen[(1,)](every, found, 2**16)
    normal = (every.abs() >= torch.finfo(torch.bfloat16).tiny) | (every == 0)
    torch.testing.assert_close(
        found[normal], every.float()[normal], rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g32-asym"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_op_is_well_formed(name: str, rows: int) -> None:
    codes = encode(torch.randn(6, 64), scheme_of(name))
    x = torch.randn(rows, 64, requires_grad=True)
    torch.library.opcheck(_dequant_mm, (x, *codes))


def test_a_group_of_odd_length_asks_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dequant, "_dequant_mm", None)  # a call of it would fail
    codes = encode(torch.randn(6, 34), scheme_of("int4-g17"))
    x = torch.randn(3, 34)
    assert torch.equal(dequant_mm(x, *codes), dequant_mm_reference(x, *codes))


def test_what_does_not_fit() -> None:
    codes, scales, _ = encode(torch.randn(6, 64), scheme_of("int8-g32"))
    with pytest.raises(R1Error, match=r"dequant_mm: x \(2, 60\)"):
        dequant_mm(torch.randn(2, 60), codes, scales)
    with pytest.raises(R1Error, match=r"dequant_mm: scales \(6, 3\)"):
        dequant_mm(torch.randn(2, 64), codes, torch.ones(6, 3))
    with pytest.raises(R1Error, match=r"dequant_mm: scales \(5, 2\)"):
        dequant_mm(torch.randn(2, 64), codes, scales[:5])
    with pytest.raises(R1Error, match=r"dequant_mm: zeros \(6, 1\)"):
        dequant_mm(torch.randn(2, 64), codes, scales, torch.zeros(6, 1))
