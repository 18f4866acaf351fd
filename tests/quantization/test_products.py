"""Products with quantised weights, beside plain ones and torchao's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from r1lite.errors import R1Error
from r1lite.quantization import products
from r1lite.quantization.coding import encode
from r1lite.quantization.products import (
    exact_product,
    int8_product,
    int_mm_is_exact,
    integer_product,
    quantise_tokens,
    weight_product,
)
from r1lite.quantization.schemes import NAMES, scheme_of
from r1lite.quantization.weight import QuantLinear, QuantWeight

FLOATING = [n for n in NAMES if n != "int8-dynamic"]


def quant_linear(linear: nn.Linear, name: str) -> QuantLinear:
    scheme = scheme_of(name)
    w = linear.weight.detach()
    return QuantLinear(scheme, tuple(w.shape), encode(w, scheme), w.dtype)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("depth", [32, 1000, 2050])
def test_whole_numbers_add_up_exactly(rows: int, depth: int) -> None:
    a = torch.randint(-127, 128, (rows, depth), dtype=torch.int8)
    b = torch.randint(-127, 128, (24, depth), dtype=torch.int8)
    want = (a.double() @ b.double().t()).to(torch.int32)
    assert torch.equal(exact_product(a, b), want)
    assert torch.equal(integer_product(a, b), want)
    extreme = torch.full((rows, depth), 127, dtype=torch.int8)
    assert int(integer_product(extreme, extreme)[0, 0]) == 127 * 127 * depth


def test_a_cpu_that_saturates_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact_product(a, b.t()).clamp(-(2**15), 2**15 - 1)

    a = torch.full((4, 256), 127, dtype=torch.int8)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    int_mm_is_exact.cache_clear()
    try:
        assert not int_mm_is_exact()
        assert int(products.integer_product(a, a)[0, 0]) == 127 * 127 * 256
    finally:
        int_mm_is_exact.cache_clear()


def test_each_token_has_its_own_scale() -> None:
    x = torch.randn(3, 64)
    x[1] *= 1000
    x[2] = 0
    codes, scales = quantise_tokens(x)
    alone, _ = quantise_tokens(x[:1])
    assert torch.equal(codes[:1], alone) and codes[2].abs().sum() == 0
    assert float((codes * scales - x).abs().max()) <= float(scales.max()) / 2


def test_nan_in_a_token_is_not_hidden() -> None:
    x = torch.ones(2, 32)
    x[1, 3] = float("nan")
    given = encode(torch.randn(4, 32), scheme_of("int8-dynamic"))
    y = int8_product(x, given.codes, given.scales)
    assert bool(y[1].isnan().all()) and bool(y[0].isfinite().all())


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_product_is_that_of_the_restored_weight(
    name: str, rows: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SLAB", 1000)  # many slabs, and a ragged last one
    scheme = scheme_of(name)
    w = torch.randn(600, 96)
    given = encode(w, scheme, parts)
    whole = QuantWeight(scheme, (600, 96), given, torch.float32, parts)
    x = torch.randn(rows, 96)
    want = F.linear(x, whole.dequantise())
    for got in (weight_product(x, given, scheme, parts), whole.product(x)):
        assert got.shape == (rows, 600) and torch.allclose(got, want, atol=1e-4)
    low = weight_product(x.bfloat16(), given, scheme, parts)
    assert low.dtype == torch.bfloat16
    assert float((low.float() - want).norm() / want.norm()) < 0.01


def test_sums_of_codes_do_not_leave_float16() -> None:
    scheme = scheme_of("int8")
    given = encode(torch.full((8, 1024), 0.01), scheme)
    y = weight_product(torch.ones(5, 1024, dtype=torch.float16), given, scheme)
    assert torch.allclose(y.float(), torch.tensor(10.24), rtol=1e-3)


def test_dynamic_int8_has_no_gradient_and_says_so() -> None:
    layer = quant_linear(nn.Linear(32, 8, bias=False), "int8-dynamic")
    with pytest.raises(R1Error, match=r"no gradient; use torch\.no_grad"):
        layer(torch.randn(2, 32, requires_grad=True))
    with torch.no_grad():
        assert layer(torch.randn(2, 3, 32)).shape == (2, 3, 8)


@pytest.mark.parametrize("name", FLOATING)
def test_a_gradient_flows_through_to_the_input(name: str) -> None:
    layer = quant_linear(nn.Linear(32, 8, bias=False), name)
    x = torch.randn(2, 32, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("int8", "Int8WeightOnlyConfig"),
        ("int8-dynamic", "Int8DynamicActivationInt8WeightConfig"),
    ],
)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_parity_with_torchao(name: str, theirs: str, rows: int) -> None:
    """Within one step of rounding: their scale is the largest number / 127.5."""
    from torchao import quantization

    plain = nn.Sequential(nn.Linear(192, 160, bias=False))
    ours = quant_linear(plain[0], name)  # type: ignore[arg-type]
    x = torch.randn(rows, 192)
    with torch.no_grad():
        exact = plain(x)
        quantization.quantize_(plain, getattr(quantization, theirs)())
        a, b = ours(x), plain(x)
    off_ours, off_theirs = (a - exact).norm(), (b - exact).norm()
    assert float((a - b).norm() / exact.norm()) < (0.02 if "dynamic" in name else 0.01)
    assert 0.8 < float(off_ours / off_theirs) < 1.25
    codes = plain[0].weight.qdata  # type: ignore[union-attr]
    assert int((codes.int() - ours.codes.int()).abs().max()) <= 1  # type: ignore[operator]


@pytest.mark.parametrize("name", ["int8", "int8-g32-asym", "int4-g32", "fp8-block"])
def test_kernels_of_chapter_11_multiply_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    scheme, x = scheme_of(name), torch.randn(3, 96)
    given = encode(torch.randn(80, 96), scheme, parts=2)
    want = weight_product(x, given, scheme, parts=2)
    used: list[str] = []

    def counted(kernel: Any) -> Any:
        return lambda *args: used.append(name) or kernel(*args)

    for kernel in ("dequant_mm", "weight_dequant"):
        monkeypatch.setattr(products, kernel, counted(getattr(products, kernel)))
    assert not used
    monkeypatch.setenv("R1LITE_KERNELS", "triton")  # interpreted: tests/conftest.py
    found = weight_product(x, given, scheme, parts=2)
    assert len(used) == (2 if name == "fp8-block" else 1)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
