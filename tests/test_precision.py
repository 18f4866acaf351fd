"""Few bits: what rounds, what must not, and what it costs."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.models import stir, tiny_config, tiny_model, token_ids
from torch import Tensor, nn

from r1lite.attention.norm import RMSNorm
from r1lite.errors import R1Error
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.moe.balance import routers
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Router
from r1lite.precision.amp import autocast, mixed_precision_, scaler_for
from r1lite.precision.fp8 import E4M3, Fp8Recipe, dequantise, quantise
from r1lite.precision.master import MasterWeights
from r1lite.precision.simulate import Fp8Experts, Fp8Linear, Fp8Product, simulate_fp8_

LOW = torch.bfloat16


# Autocast.


def test_products_are_low_and_float32_needs_no_context() -> None:
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with autocast("cpu", dtype):
                assert F.linear(x, w).dtype == dtype
    with pytest.raises(R1Error, match="float64 is not for autocast"):
        autocast("cpu", torch.float64)


def test_the_router_survives_autocast_only_when_prepared() -> None:
    torch.manual_seed(0)
    model = tiny_model(initializer_range=0.4)
    x = torch.randn(64, 32)
    gate = routers(model)[0]
    want = gate(x)
    with autocast("cpu", LOW):
        bare = gate(x)
    assert bare.scores.dtype == LOW  # Router's own casts do not help
    mixed_precision_(model)
    with autocast("cpu", LOW):
        found = routers(model)[0](x)
    assert found.scores.dtype == found.weights.dtype == torch.float32
    assert torch.equal(found.experts, want.experts)
    assert torch.equal(found.weights, want.weights)
    assert not torch.equal(bare.weights.float(), want.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_keep_float32_statistics_under_autocast(dtype: torch.dtype) -> None:
    norm = RMSNorm(4096)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = (300 * torch.randn(3, 4096)).to(dtype)
    wide = x.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    want = want * norm.weight.double()
    with autocast("cpu", LOW):
        found = norm(x)
    rounding = 1e-6 if dtype == torch.float32 else 2**-8  # of the result alone
    assert ((found - want).abs() <= rounding * want.abs() + 1e-6).all()


def test_experts_follow_autocast_only_when_prepared() -> None:
    torch.manual_seed(0)
    experts = Experts(tiny_config())
    rows, counts = torch.randn(5, 32), torch.tensor([2, 0, 0, 3, 0, 0, 0, 0])
    want = experts(rows, counts).detach()
    with autocast("cpu", LOW):
        assert experts(rows, counts).dtype == torch.float32
        mixed_precision_(experts)
        found = experts(rows, counts)
    assert found.dtype == LOW
    assert not torch.equal(found.float(), want)
    torch.testing.assert_close(
        found.float(), want, atol=0.02 * float(want.abs().max()), rtol=0
    )
    assert torch.equal(experts(rows, counts), want)  # outside nothing changes


def test_a_prepared_model_trains_near_float32() -> None:
    torch.manual_seed(0)
    model = stir(R1Model(tiny_config(num_nextn_predict_layers=1)).train())
    ids, found = token_ids(4, 16), []
    for dtype in (torch.float32, LOW):
        twin = mixed_precision_(copy.deepcopy(model))
        assert list(twin.state_dict()) == list(model.state_dict())
        with autocast("cpu", dtype):
            logits = twin(ids).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        grads = [p.grad.flatten() for p in twin.parameters() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in grads)
        found.append(torch.cat(grads))
    assert F.cosine_similarity(found[0], found[1], dim=0) > 0.98


def test_only_float16_gets_a_real_scaler() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        scaler = scaler_for("cpu", dtype)
        assert not scaler.is_enabled()
        assert scaler.scale(torch.tensor(3.0)) == 3
    assert scaler_for("cpu", torch.float16).is_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_loop_serves_every_dtype(dtype: torch.dtype) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([w], 0.1), scaler_for("cpu", dtype)
    for grad in ([1.0, 2.0], [math.inf, 0.0]):
        optimizer.zero_grad()
        scaler.scale((w * torch.tensor(grad)).sum()).backward()
        scaler.unscale_(optimizer)
        if dtype == torch.float16 or grad[0] == 1.0:
            scaler.step(optimizer)  # skips the infinite one
        scaler.update()
    torch.testing.assert_close(w.data, torch.tensor([0.9, 0.8]))
    if scaler.is_enabled():
        assert scaler.get_scale() == 2**15


# Master weights.


def test_bfloat16_alone_loses_small_steps_and_a_master_does_not() -> None:
    alone = nn.Linear(1, 1, bias=False).to(LOW)
    kept = nn.Linear(1, 1, bias=False).to(LOW)
    for layer in (alone, kept):
        nn.init.ones_(layer.weight)
    master = MasterWeights(kept)
    one = torch.optim.SGD(alone.parameters(), 0.001)
    two = torch.optim.SGD(master.copies, 0.001)
    for _ in range(100):
        for p in (alone.weight, kept.weight):
            p.grad = -torch.ones_like(p)
        one.step()
        master.take_gradients()
        assert kept.weight.grad is None
        two.step()
        master.hand_out()
    assert alone.weight.item() == 1.0
    assert master.copies[0].item() == pytest.approx(1.1, abs=1e-5)
    assert kept.weight.item() == torch.tensor(1.1, dtype=LOW).item()


def test_master_weights_pass_over_what_is_frozen_or_unused() -> None:
    model = nn.Linear(2, 2).to(LOW)
    model.bias.requires_grad_(False)
    master = MasterWeights(model)
    assert len(master.copies) == 1
    master.take_gradients()
    assert master.copies[0].grad is None


# FP8 numbers.


def value_of(code: int) -> float:
    """E4M3 by its definition: sign, 4 bits of exponent with bias 7, 3 of fraction."""
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and fraction == 7:
        return math.nan
    size = (
        fraction / 8 * 2.0**-6
        if exponent == 0
        else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    )
    return -size if sign else size


TABLE = [value_of(code) for code in range(256)]
POSITIVE = sorted(v for v in TABLE[:128] if not math.isnan(v))


def nearest(x: float) -> float:
    """The closest of all codes; between two, the one with an even fraction."""
    best = min(
        range(127),
        key=lambda code: (abs(value_of(code) - abs(x)), value_of(code) and code % 2),
    )
    return math.copysign(value_of(best), x)


def test_every_code_means_what_the_definition_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    assert torch.equal(codes.isnan(), torch.tensor([math.isnan(v) for v in TABLE]))
    assert codes.nan_to_num(0).tolist() == [0 if math.isnan(v) else v for v in TABLE]
    assert len(set(POSITIVE)) * 2 - 1 == 253
    assert (POSITIVE[1], POSITIVE[-1]) == (2**-9, 448)


def test_the_cast_rounds_to_the_nearest_and_to_even() -> None:
    torch.manual_seed(0)
    x = torch.randn(200) * 2.0 ** torch.randint(-10, 8, (200,))
    middles = [(a + b) / 2 for a, b in pairwise(POSITIVE)]
    x = torch.cat((x.clamp(-448, 448), torch.tensor(middles)))
    plain = Fp8Recipe("none").activation(x[None])[0]
    assert plain.tolist() == [nearest(v) for v in x.tolist()]


def test_scales_by_hand() -> None:
    """Tiles of 1 x 2 over three columns: the last is ragged, one is all zeros."""
    x = torch.tensor([[448.0, 1.0, 4.48], [0.0, 0.0, -0.896]])
    codes, scales = quantise(x, (1, 2))
    torch.testing.assert_close(scales, torch.tensor([[1.0, 0.01], [1.0, 0.002]]))
    assert codes.dtype == E4M3
    assert codes.float().tolist() == [[448.0, 1.0, 448.0], [0.0, 0.0, -448.0]]
    torch.testing.assert_close(dequantise(codes, scales, (1, 2)), x)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_numbers_too_small_for_a_scale_become_zero(power_of_two: bool) -> None:
    """1e-44 / 448 is no float32."""
    x = torch.tensor([[1e-44, -1e-45, 448.0, 0.0]])
    codes, scales = quantise(x, (1, 2), power_of_two)
    assert scales.tolist() == [[1.0, 1.0]]
    assert dequantise(codes, scales, (1, 2)).tolist() == [[0.0, 0.0, 448.0, 0.0]]


def test_powers_of_two_round_up_so_that_nothing_overflows() -> None:
    x = torch.tensor([[449.0, 300.0], [0.7, 448.0]])
    codes, scales = quantise(x, (1, 2), power_of_two=True)
    assert scales.tolist() == [[2.0], [1.0]]
    assert codes.float()[0].tolist() == [224.0, 144.0]


def slow_round(x: Tensor, high: int, wide: int) -> Tensor:
    out = torch.empty_like(x)
    for i in range(0, x.shape[0], high):
        for j in range(0, x.shape[1], wide):
            tile = x[i : i + high, j : j + wide]
            scale = tile.abs().max() / 448
            scale = scale if scale > 0 else torch.tensor(1.0)
            out[i : i + high, j : j + wide] = (tile / scale).to(E4M3).float() * scale
    return out


@pytest.mark.parametrize("shape", [(5, 7), (8, 4), (1, 1), (3, 13)])
def test_tiles_and_blocks_against_loops(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) * 10.0 ** torch.randn(shape)
    recipe = Fp8Recipe(size=4)
    assert torch.equal(recipe.activation(x), slow_round(x, 1, 4))
    assert torch.equal(recipe.weight(x), slow_round(x, 4, 4))
    whole = Fp8Recipe("tensor").activation(x)
    assert torch.equal(whole, slow_round(x, *shape))


def test_an_outlier_stays_in_its_tile() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 256)
    x[0, 0] = 1e6
    errors = {}
    for scaling in ("tile", "tensor"):
        rounded = Fp8Recipe(scaling).activation(x)
        errors[scaling] = ((rounded - x) / x)[1:].abs().mean().item()
    assert errors["tile"] < 0.03
    assert errors["tensor"] > 0.9


def test_an_empty_tensor_stays_empty() -> None:
    for scaling in ("tile", "tensor", "none"):
        assert Fp8Recipe(scaling).activation(torch.zeros(0, 8)).shape == (0, 8)


def test_impossible_recipes_are_named() -> None:
    with pytest.raises(R1Error, match="'row' is unknown"):
        Fp8Recipe("row")
    with pytest.raises(R1Error, match=r"fp8\.size: 0"):
        Fp8Recipe(size=0)


# FP8 training.


def test_three_products_against_loops() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 10, requires_grad=True)
    w = torch.randn(6, 10, requires_grad=True)
    dy = torch.randn(7, 6)
    y = Fp8Product.apply(x, w, Fp8Recipe(size=4))
    y.backward(dy)
    x0, w0 = x.detach(), w.detach()
    low_w = slow_round(w0, 4, 4)
    torch.testing.assert_close(y.detach(), slow_round(x0, 1, 4) @ low_w.t())
    torch.testing.assert_close(x.grad, slow_round(dy, 1, 4) @ low_w)
    down, tokens = slow_round(dy, 4, 1), slow_round(x0, 4, 1)
    torch.testing.assert_close(w.grad, down.t() @ tokens)
    assert (y.detach() - x0 @ w0.t()).abs().max() > 1e-3


def test_a_fine_recipe_nears_the_exact_gradient() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(40, 32), torch.randn(24, 32, requires_grad=True)
    dy = torch.randn(40, 24)
    (exact,) = torch.autograd.grad(F.linear(x, w), w, dy)
    (found,) = torch.autograd.grad(Fp8Product.apply(x, w, Fp8Recipe()), w, dy)
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.05


def test_experts_are_linears_with_tiles_of_their_own() -> None:
    torch.manual_seed(0)
    experts = Experts(tiny_config())
    counts = torch.tensor([3, 0, 1, 2, 0, 0, 0, 0])
    rows = torch.randn(6, 32)
    recipe = Fp8Recipe(size=8)
    found = simulate_fp8_(experts, recipe)(rows, counts)
    assert type(experts) is Fp8Experts
    want, at = [], 0
    for i, n in enumerate(counts.tolist()):
        block, at = rows[at : at + n], at + n
        both = Fp8Product.apply(block, experts.gate_up_proj[i], recipe)
        gate, up = both.chunk(2, -1)
        inner = F.silu(gate) * up
        want.append(Fp8Product.apply(inner, experts.down_proj[i], recipe))
    torch.testing.assert_close(found, torch.cat(want))
    found.sum().backward()
    assert experts.gate_up_proj.grad is not None
    assert not experts.gate_up_proj.grad[1].any()
    empty = simulate_fp8_(Experts(tiny_config()), recipe)
    assert empty(torch.zeros(0, 32), torch.zeros(8, dtype=torch.int64)).shape == (0, 32)


def fp8_model(**changes: Any) -> R1Model:
    torch.manual_seed(0)
    return stir(R1Model(tiny_config(num_nextn_predict_layers=1, **changes)).train())


def test_what_v3_keeps_stays_exact_and_it_is_taken_back() -> None:
    model, ids = fp8_model(attention_bias=True, q_lora_rank=20), token_ids(2, 11)
    before, names = model(ids).logits, list(model.state_dict())
    assert simulate_fp8_(model, Fp8Recipe()) is model
    kinds = {name: type(m) for name, m in model.named_modules()}
    assert kinds["lm_head"] is nn.Linear
    assert kinds["embed_tokens"] is nn.Embedding
    assert kinds["layers.1.mlp.gate"] is Router
    assert kinds["layers.1.mlp.experts"] is Fp8Experts
    low = [n.rpartition(".")[2] for n, kind in kinds.items() if kind is Fp8Linear]
    assert set(low) == {
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj", "eh_proj"),
    }
    assert list(model.state_dict()) == names
    during = model(ids).logits
    assert 1e-3 < (during - before).abs().max() < 1
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(ids).logits, during)
    simulate_fp8_(model, None)
    assert torch.equal(model(ids).logits, before)
    assert not any("fp8" in vars(m) for m in model.modules())
    assert type(twin.lm_head) is nn.Linear and type(twin.mtp.eh_proj) is Fp8Linear


@pytest.mark.parametrize("policy", ["block", "selective"])
def test_checkpointing_and_fp8_go_together(policy: str) -> None:
    ids, found = token_ids(2, 11), []
    for each in ("none", policy):
        model = simulate_fp8_(checkpoint_blocks_(fp8_model(), each), Fp8Recipe())
        loss = model(ids).logits.square().mean()
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in found[0].items():
        assert grad is None or torch.equal(found[1][name], grad), name


def test_fp8_works_under_autocast() -> None:
    model, ids = simulate_fp8_(fp8_model(), Fp8Recipe()), token_ids(2, 11)
    with autocast("cpu", LOW):
        loss = model(ids).logits.float().square().mean()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
