"""PyTorch's kernel for 4-bit weights: equal to decoding, and never in the way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_model, token_ids
from torch import Tensor

from r1lite.model import R1Model
from r1lite.quantization import int4, quantize_
from r1lite.quantization.coding import encode
from r1lite.quantization.hqq import hqq
from r1lite.quantization.schemes import Scheme, scheme_of
from r1lite.quantization.walk import model_bytes, quant_weights
from r1lite.quantization.weight import QuantExperts, QuantLinear, QuantWeight

HALF = torch.bfloat16
SIZES = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64}
SIZES |= {"kv_lora_rank": 16, "v_head_dim": 16}


@pytest.fixture(params=[True, False], ids=["kernel", "plain processor"])
def works(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The kernel is believed in, on every processor; or not."""
    monkeypatch.setattr(int4, "int4_works", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plain code is slow, and as right."""
    monkeypatch.setattr(int4, "int4_works", lambda: True)


def held(name: str, shape: tuple[int, ...], kind: type = QuantWeight) -> QuantWeight:
    scheme = scheme_of(name)
    made: QuantWeight = kind(scheme, shape, encode(torch.randn(shape), scheme), HALF)
    return made


def off(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize("suffix", ["", "-asym"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5, int4.FEW, int4.FEW + 1])
def test_a_product_is_that_of_the_restored_weight(
    rows: int, group: int, suffix: str, works: bool
) -> None:
    weight = held(f"int4-g{group}{suffix}", (80, 256))
    x = torch.randn(rows, 256).to(HALF)
    y = weight.product(x)
    assert y.shape == (rows, 80) and y.dtype == HALF
    assert bool(weight.packed) == (works and rows <= int4.FEW)
    assert off(y, F.linear(x.float(), weight.dequantise())) < 0.006


def test_zero_points_that_are_no_whole_numbers(kernel: None) -> None:
    scheme, w = scheme_of("int4-g32-asym"), torch.randn(32, 64) + 1
    weight = QuantWeight(scheme, (32, 64), hqq(w, scheme), HALF)
    x = torch.randn(2, 64).to(HALF)
    assert off(weight.product(x), F.linear(x.float(), weight.dequantise())) < 0.006
    assert weight.packed


def test_every_code_comes_back_exactly(kernel: None) -> None:
    scheme = scheme_of("int4-g32")
    given = encode(torch.randn(96, 64), scheme)
    ones = given._replace(scales=torch.ones_like(given.scales))
    packed = int4.pack_int4(ones, scheme)
    rows = torch.eye(64).to(HALF).split(int4.FEW)
    whole = torch.cat([int4.int4_product(x, packed, scheme) for x in rows])
    steps = QuantWeight(scheme, (96, 64), ones, HALF).dequantise()
    assert torch.equal(whole.t().float(), steps)


@pytest.mark.parametrize("scaled", [True, False])
def test_each_expert_has_its_own(scaled: bool, kernel: None) -> None:
    up, down = held("int4-g32", (3, 64, 64)), held("int4-g32-asym", (3, 64, 32))
    if scaled:
        up.input_scale = torch.rand(3, 64).to(HALF) + 0.5
    experts, rows = QuantExperts(up, down), torch.randn(3, 64).to(HALF)
    got = experts(rows, torch.tensor([2, 0, 1]))
    assert set(up.packed) == set(down.packed) == {0, 2}
    want = []
    for row, i in zip(rows.float(), (0, 0, 2), strict=True):
        gate, high = (up.dequantise(i) @ row).chunk(2)
        want.append(down.dequantise(i) @ (F.silu(gate) * high))
    assert off(got, torch.stack(want)) < 0.02


@pytest.mark.parametrize(
    ("name", "outputs", "dtype"),
    [
        ("int4-g32", 80, torch.float32),
        ("int4-g32", 80, torch.float16),
        ("int4-g32", 24, HALF),
        ("int4-g16", 80, HALF),
        ("int4-g96", 80, HALF),
        ("int4", 80, HALF),
        ("nf4-g32", 80, HALF),
        ("int8-g32", 80, HALF),
    ],
)
def test_what_the_kernel_does_not_take(
    name: str, outputs: int, dtype: torch.dtype, kernel: None
) -> None:
    weight = held(name, (outputs, 192))
    x = torch.randn(2, 192).to(dtype)
    y = weight.product(x)
    assert not weight.packed and y.dtype == dtype
    assert off(y, F.linear(x.float(), weight.dequantise())) < 0.006


def test_no_rows(kernel: None) -> None:
    weight = held("int4-g32", (32, 64))
    assert weight.product(torch.empty(0, 64, dtype=HALF)).shape == (0, 32)


def test_a_gradient_takes_the_other_way(kernel: None) -> None:
    layer = held("int4-g32", (32, 64), QuantLinear)
    x = torch.randn(2, 64, dtype=HALF, requires_grad=True)
    layer(x).sum().backward()
    assert not layer.packed and x.grad is not None
    assert off(x.grad[0], layer.dequantise().sum(0)) < 0.01
    with torch.inference_mode():
        layer(x.detach())
    assert layer.packed and not layer(x.detach()).requires_grad


@pytest.fixture
def used(kernel: None) -> R1Model:
    """A model in bfloat16 whose kernel has been used."""
    model = tiny_model(**SIZES).to(HALF)
    quantize_(model, "int4-g32-asym")
    with torch.inference_mode():
        model(token_ids(1, 4))
    weights = quant_weights(model)
    assert all(w.packed for n, w in weights.items() if ".experts." in n)
    assert weights["layers.0.self_attn.o_proj"].packed
    return model


def test_saving_after_use_writes_the_same_bytes(used: R1Model, tmp_path: Path) -> None:
    fresh = copy.deepcopy(used)
    for w in quant_weights(fresh).values():
        w.packed.clear()
    used.save_pretrained(tmp_path / "used")
    fresh.save_pretrained(tmp_path / "fresh")
    names = sorted(f.name for f in (tmp_path / "used").iterdir())
    assert names == sorted(f.name for f in (tmp_path / "fresh").iterdir())
    for name in names:
        a, b = ((tmp_path / d / name).read_bytes() for d in ("used", "fresh"))
        assert a == b, name
    assert not any("packed" in name for name in used.state_dict())


def test_what_it_takes_is_counted(used: R1Model) -> None:
    weights = quant_weights(used).values()
    extra = sum(t.nbytes for w in weights for p in w.packed.values() for t in p)
    numbers = sum(p.codes.numel() * 2 for w in weights for p in w.packed.values())
    before = model_bytes(used)
    assert extra == numbers // 2 + numbers // 32 * 4  # 5 bits a weight
    used.to("cpu")
    assert before - model_bytes(used) == extra


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to(torch.float32),
        lambda m: m.to("meta"),
        lambda m: m.load_state_dict({k: t.clone() for k, t in m.state_dict().items()}),
    ],
)
def test_a_change_forgets_it(
    used: R1Model, change: Callable[[R1Model], object]
) -> None:
    change(used)
    assert not any(w.packed for w in quant_weights(used).values())


@pytest.mark.parametrize("fault", ["missing", "wrong", "plain"])
def test_a_kernel_that_cannot_be_trusted(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: Tensor, packed: int4.Int4, scheme: Scheme) -> Tensor:
        if fault == "missing":
            raise AttributeError("'_OpNamespace' 'aten' object has no attribute")
        return torch.zeros(len(x), len(packed.codes), dtype=x.dtype)

    if fault == "plain":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        monkeypatch.setattr(int4, "int4_product", broken)
    int4.int4_works.cache_clear()
    try:
        assert not int4.int4_works()
    finally:
        int4.int4_works.cache_clear()


def test_a_kernel_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    int4.int4_works.cache_clear()
    try:
        assert int4.int4_works()
    finally:
        int4.int4_works.cache_clear()
