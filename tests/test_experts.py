"""Experts, dispatch and the layer, against one token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.models import tiny_config
from torch import Tensor

from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.experts import Experts, SwiGLU, grouped, looped
from r1lite.moe.gating import Routing
from r1lite.moe.layer import MoE


def one_expert(x: Tensor, experts: Experts, e: int) -> Tensor:
    both = experts.gate_up_proj[e] @ x
    inner = len(both) // 2
    return experts.down_proj[e] @ (F.silu(both[:inner]) * both[inner:])


def slow_dispatch(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    rows = []
    for token, picks, weights in zip(x, routing.experts, routing.weights, strict=True):
        parts = [
            w * one_expert(token, experts, int(e))
            for e, w in zip(picks, weights, strict=True)
        ]
        rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows)


def routing_to(picks: Tensor, n_experts: int = 8) -> Routing:
    counts = torch.bincount(picks.flatten(), minlength=n_experts)
    weights = torch.rand(picks.shape, requires_grad=True)
    return Routing(weights, picks, torch.empty(0), counts)


CASES = {
    "spread": torch.tensor([[0, 7], [3, 1], [5, 0], [2, 6], [4, 1]]),
    "idle experts": torch.tensor([[1, 6], [6, 1], [1, 6]]),
    "all to the first": torch.tensor([[0], [0], [0]]),
    "all to the last": torch.tensor([[7], [7]]),
    "one token": torch.tensor([[4, 2]]),
}


@pytest.mark.parametrize("inner", [16, 5], ids=["grouped", "looped"])
@pytest.mark.parametrize("picks", CASES.values(), ids=CASES)
def test_dispatch_is_the_slow_loop_with_its_gradients(
    picks: Tensor, inner: int
) -> None:
    experts = Experts(tiny_config(moe_intermediate_size=inner))
    x = torch.randn(len(picks), 32, requires_grad=True)
    routing = routing_to(picks)
    wanted = [x, routing.weights, *experts.parameters()]
    fast = dispatch_local(x, routing, experts)
    slow = slow_dispatch(x, routing, experts)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(slow)
    got = torch.autograd.grad(fast, wanted, direction)
    want = torch.autograd.grad(slow, wanted, direction)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)
    idle = [e for e in range(8) if routing.counts[e] == 0]
    assert all(got[2][e].abs().sum() == 0 for e in idle)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_both_ways_agree_for_any_routing(tokens: int, k: int, seed: int) -> None:
    torch.manual_seed(seed)
    experts = Experts(tiny_config(num_experts_per_tok=k))
    routing = routing_to(torch.rand(tokens, 8).topk(k).indices)
    rows = torch.randn(tokens * k, 32)
    weights = (experts.gate_up_proj, experts.down_proj)
    torch.testing.assert_close(
        grouped(rows, *weights, routing.counts),
        looped(rows, *weights, routing.counts),
        atol=1e-5,
        rtol=1e-5,
    )
    x = torch.randn(tokens, 32)
    torch.testing.assert_close(
        dispatch_local(x, routing, experts),
        slow_dispatch(x, routing, experts),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_scalar_loss_reaches_the_experts() -> None:
    # .sum() hands back a gradient of stride 0, which grouped_mm refuses raw
    layer = MoE(tiny_config(n_shared_experts=0)).train()
    layer(torch.randn(2, 3, 32)).sum().backward()
    assert layer.experts.down_proj.grad is not None
    assert layer.experts.down_proj.grad.abs().sum() > 0


def test_no_tokens_at_all() -> None:
    experts = Experts(tiny_config())
    counts = torch.zeros(8, dtype=torch.int64)
    weights = (experts.gate_up_proj, experts.down_proj)
    assert looped(torch.empty(0, 32), *weights, counts).shape == (0, 32)


@pytest.mark.parametrize("n_shared", [0, 1, 3])
def test_layer_is_routed_plus_shared(n_shared: int) -> None:
    layer = MoE(tiny_config(n_shared_experts=n_shared)).eval()
    x = torch.randn(2, 5, 32)
    flat = x.view(-1, 32)
    want = slow_dispatch(flat, layer.gate(x), layer.experts).view(x.shape)
    if n_shared:
        assert isinstance(layer.shared_experts, SwiGLU)
        assert layer.shared_experts.gate_proj.weight.shape == (16 * n_shared, 32)
        want = want + layer.shared_experts(x)
    else:
        assert layer.shared_experts is None
    torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-5)


def test_the_dispatcher_can_be_replaced() -> None:
    seen: dict[str, Any] = {}

    def spy(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
        seen.update(x=x.shape, picks=routing.experts.shape)
        return torch.zeros_like(x)

    layer = MoE(tiny_config(n_shared_experts=0), dispatcher=spy)
    assert layer(torch.randn(2, 5, 32)).abs().sum() == 0
    assert seen == {"x": (10, 32), "picks": (10, 2)}


def test_same_input_same_bits() -> None:
    layer = MoE(tiny_config())
    x = torch.randn(4, 16, 32)
    first = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    again = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
