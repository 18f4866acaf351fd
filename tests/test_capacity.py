"""Capacity: who is served, who is dropped, and what the counts say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import tiny_config
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.moe.capacity import CapacityDispatch, DropStats, expert_capacity
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Routing
from r1lite.moe.layer import MoE


def routing_to(picks: Tensor, weights: Tensor | None = None) -> Routing:
    counts = torch.bincount(picks.flatten(), minlength=8)
    weights = torch.rand(picks.shape) if weights is None else weights
    return Routing(weights, picks, torch.empty(0), counts)


def random_routing(tokens: int, k: int) -> Routing:
    """Skewed towards the first experts, so that something overflows."""
    liking = torch.rand(tokens, 8) + torch.linspace(0.8, 0, 8)
    return routing_to(liking.topk(k).indices)


def slow_kept(routing: Routing, room: int, priority: str) -> Tensor:
    """Serve pick after pick, in order or by weight, while there is room."""
    tokens, k = routing.experts.shape
    queue = [(t, i) for t in range(tokens) for i in range(k)]
    if priority == "weight":
        queue.sort(key=lambda at: -float(routing.weights[at]))
    taken = [0] * 8
    kept = torch.zeros(tokens, k, dtype=torch.bool)
    for at in queue:
        expert = int(routing.experts[at])
        if taken[expert] < room:
            taken[expert] += 1
            kept[at] = True
    return kept


def last(dispatch: CapacityDispatch) -> DropStats:
    assert dispatch.last is not None
    return dispatch.last


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "factor", "want"),
    [
        (100, 1, 10, 1.0, 10),
        (1000, 1, 10, 1.1, 110),  # 111 in floats
        (100, 1, 10, 1.25, 13),
        (7, 2, 8, 1.0, 2),
        (1, 2, 8, 0.5, 1),
        (0, 2, 8, 1.0, 0),
        (4096, 8, 256, 1, 128),
    ],
)
def test_capacity_by_hand(
    tokens: int, k: int, experts: int, factor: float, want: int
) -> None:
    assert expert_capacity(tokens, k, experts, factor) == want


def test_by_hand() -> None:
    # 4 tokens, 2 picks, 8 experts, factor 2: room for 2 picks an expert
    picks = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]])
    weights = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    routing = routing_to(picks, weights)
    x, experts = torch.randn(4, 32), Experts(tiny_config())
    by_order, by_weight = CapacityDispatch(2.0), CapacityDispatch(2.0, "weight")
    by_order(x, routing, experts)
    by_weight(x, routing, experts)
    assert last(by_order).kept.tolist() == [[1, 1], [1, 1], [0, 1], [0, 0]]
    assert last(by_weight).kept.tolist() == [[0, 1], [0, 1], [1, 0], [1, 1]]
    assert last(by_order).wanted.tolist() == [4, 3, 1, 0, 0, 0, 0, 0]
    assert last(by_order).dropped.tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert last(by_order).drop_share == pytest.approx(3 / 8)
    assert last(by_order).lost_tokens == 1
    assert last(by_weight).lost_tokens == 0
    assert last(by_order).padding_share == pytest.approx(1 - 5 / 16)


@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from([0.25, 0.5, 1.0, 1.1, 2.0, 8.0]),
    st.sampled_from(["order", "weight"]),
    st.integers(0, 2**31),
)
def test_any_routing_is_the_slow_queue(
    tokens: int, k: int, factor: float, priority: str, seed: int
) -> None:
    torch.manual_seed(seed)
    experts, routing = Experts(tiny_config()), random_routing(tokens, k)
    x = torch.randn(tokens, 32)
    dispatch = CapacityDispatch(factor, priority)
    found = dispatch(x, routing, experts)
    stats = last(dispatch)
    assert torch.equal(stats.kept, slow_kept(routing, stats.capacity, priority))
    assert int(stats.dropped.sum()) == int((~stats.kept).sum())
    # A dropped pick is a pick of weight zero.
    silent = routing._replace(weights=routing.weights * stats.kept)
    want = dispatch_local(x, silent, experts)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("priority", ["order", "weight"])
@pytest.mark.parametrize("inner", [16, 5], ids=["grouped", "looped"])
def test_enough_room_is_dropless_to_the_bit(priority: str, inner: int) -> None:
    config = tiny_config(moe_intermediate_size=inner)
    torch.manual_seed(3)
    plain = MoE(config)
    limited = MoE(config, dispatcher=CapacityDispatch(8 / 2, priority))
    limited.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 32)
    x[:] = x[0, 0]  # everyone goes to the same two experts
    assert torch.equal(limited(x), plain(x))
    want = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    got = torch.autograd.grad(limited(x).square().sum(), list(limited.parameters()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-6)


def test_a_dropped_pick_teaches_nobody() -> None:
    experts = Experts(tiny_config())
    x = torch.randn(3, 32, requires_grad=True)
    weights = torch.ones(3, 1, requires_grad=True)
    routing = routing_to(torch.tensor([[5], [5], [5]]), weights)
    out = CapacityDispatch(8 / 3)(x, routing, experts)  # room for 1
    assert out[1:].abs().sum() == 0 and out[0].abs().sum() > 0
    grads = torch.autograd.grad(out.square().sum(), [x, weights, experts.down_proj])
    assert grads[0][1:].abs().sum() == 0 and grads[0][0].abs().sum() > 0
    assert grads[1][1:].abs().sum() == 0
    assert [e for e in range(8) if grads[2][e].abs().sum() > 0] == [5]


def test_a_later_token_changes_nothing_by_order_but_may_by_weight() -> None:
    experts, x = Experts(tiny_config()), torch.randn(2, 32)
    picks = torch.tensor([[5], [5]])
    first = {}
    for priority in ("order", "weight"):
        for heavy in (0.1, 0.9):
            routing = routing_to(picks, torch.tensor([[0.5], [heavy]]))
            out = CapacityDispatch(4.0, priority)(x, routing, experts)
            first[priority, heavy] = out[0].detach()
    assert torch.equal(first["order", 0.1], first["order", 0.9])
    assert first["weight", 0.1].abs().sum() > 0
    assert first["weight", 0.9].abs().sum() == 0


def test_no_tokens_at_all() -> None:
    dispatch = CapacityDispatch(1.0)
    none = torch.empty(0, 2, dtype=torch.int64)
    out = dispatch(torch.empty(0, 32), routing_to(none), Experts(tiny_config()))
    assert out.shape == (0, 32)
    stats = last(dispatch)
    assert (stats.drop_share, stats.lost_tokens, stats.padding_share) == (0, 0, 1)


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan")])
def test_a_factor_without_sense_is_refused(factor: float) -> None:
    with pytest.raises(R1Error, match=r"capacity\.factor.*such as 1\.25"):
        CapacityDispatch(factor)


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(R1Error, match="order or weight"):
        CapacityDispatch(1.0, priority="first")
