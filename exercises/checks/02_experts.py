"""Checks of chapter 02's exercises. They run the reader's file, nothing else."""

import math
from types import ModuleType

import torch
from torch import Tensor, nn

from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config
from r1lite.moe.capacity import expert_capacity
from r1lite.moe.experts import Experts, SwiGLU
from r1lite.moe.gating import Routing


def slow_swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One expert on one token (hidden,), from its three matrices."""
    g = gate @ x
    return down @ (g / (1 + (-g).exp()) * (up @ x))


# 2.1


def check_2_1(mine: ModuleType) -> None:
    given(mine.ROOM, mine.DROPPED, mine.EMPTY)
    slips = {
        7: "7.5 is rounded up, so that a fair share always fits",
        7.5: "a place is whole; 7.5 is rounded up",
        6: "that is the fair share; multiply it by the capacity factor",
        4: "you counted 12 tokens; each makes two picks",
        3: "you counted 12 tokens, and without the capacity factor",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(mine.ROOM, wrong), f"ROOM: {why}")
    expect(mine.ROOM == 8, "ROOM: ceil(24 / 4 * 1.25) is asked")
    slips = {
        5: "with room for 7 it would be 5; the room is 8",
        6: "that is for room 6, a factor of 1",
        0: "24 picks find 32 places, but expert 0 has only 8 of them; no pick moves "
        "to another expert",
    }
    for wrong, why in slips.items():
        expect(wrong != mine.DROPPED, f"DROPPED: {why}")
    expect(mine.DROPPED == 4, "DROPPED: expert 0 is asked for 12 and takes 8")
    expect(
        mine.EMPTY != 8,
        "EMPTY: 32 - 24 counts the dropped picks as if they had found a place",
    )
    expect(mine.EMPTY == 12, "EMPTY: experts 1, 2 and 3 leave 2 + 4 + 6 places empty")


# 2.2


def check_2_2(mine: ModuleType) -> None:
    toy = SwiGLU(2, 1)
    with torch.no_grad():
        toy.gate_proj.weight.copy_(torch.tensor([[1.0, 0.0]]))
        toy.up_proj.weight.copy_(torch.tensor([[0.0, 1.0]]))
        toy.down_proj.weight.copy_(torch.tensor([[1.0], [1.0]]))
    found = mine.swiglu_forward(toy, torch.tensor([2.0, 3.0]))
    shape(found, (2,), "the output")
    silu2, silu3 = 2 / (1 + math.exp(-2)), 3 / (1 + math.exp(-3))
    slips = {
        2 * silu3: "silu bends `up`; it belongs on the gate",
        6 / (1 + math.exp(-6)): "silu bends the product; it belongs on the gate alone",
        silu2 * silu3: "silu bends gate and up; it belongs on the gate alone",
        3
        / (1 + math.exp(-2)): "the gate is a plain sigmoid; silu(z) is z * sigmoid(z)",
        6.0: "silu is missing (with relu a positive number stays as it is)",
        silu2: "up is missing: the bent gate is multiplied by up(x)",
        silu2 + 3: "gate and up are multiplied, not added",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(found[0].item(), wrong, rel_tol=1e-4), why)
    close(found, [3 * silu2] * 2, "x = (2, 3): 3 silu(2) is asked, twice")

    made = SwiGLU(5, 7)
    x = torch.randn(2, 3, 5, requires_grad=True)
    found = mine.swiglu_forward(made, x)
    shape(found, (2, 3, 5), "the output for x (2, 3, 5)")
    parts = (made.gate_proj.weight, made.up_proj.weight, made.down_proj.weight)
    want = torch.stack([slow_swiglu(t, *parts) for t in x.view(-1, 5)]).view(x.shape)
    close(found, want, "differs from the slow version")
    _same_gradients(found, want, [x, *parts])


def _same_gradients(found: Tensor, want: Tensor, leaves: list[Tensor]) -> None:
    """The gradients of both by the same random direction."""
    direction = torch.randn_like(want)
    expect(found.requires_grad, "no gradient comes back; use no detach or no_grad")
    got = torch.autograd.grad(found, leaves, direction, allow_unused=True)
    wanted = torch.autograd.grad(want, leaves, direction)
    for g, w in zip(got, wanted, strict=True):
        g = torch.zeros_like(w) if g is None else g
        close(g, w, "the value is right, but a gradient is not", atol=1e-4)


# 2.3


def stack(n_experts: int, inner: int, hidden: int) -> tuple[Tensor, Tensor]:
    """gate_up (E, 2 * inner, hidden) and down (E, hidden, inner), with gradients."""
    gate_up = torch.randn(n_experts, 2 * inner, hidden, requires_grad=True)
    return gate_up, torch.randn(n_experts, hidden, inner, requires_grad=True)


def slow_experts(rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor) -> Tensor:
    """One row at a time."""
    owners = [e for e, n in enumerate(counts.tolist()) for _ in range(n)]
    inner = down.shape[-1]
    done = [
        slow_swiglu(row, gate_up[e, :inner], gate_up[e, inner:], down[e])
        for row, e in zip(rows, owners, strict=True)
    ]
    return torch.stack(done) if done else rows


def check_2_3(mine: ModuleType) -> None:
    gate_up, down = stack(3, 2, 5)
    row = torch.randn(1, 5)
    found = mine.by_expert(row, gate_up, down, torch.tensor([1, 0, 0]))
    shape(found, (1, 5), "one row of expert 0")
    first = gate_up[0]
    swapped = slow_swiglu(row[0], first[2:], first[:2], down[0])
    expect(
        not torch.allclose(found[0], swapped, atol=1e-5),
        "gate and up are swapped: the first half of gate_up is the gate",
    )
    turns = slow_swiglu(row[0], first[0::2], first[1::2], down[0])
    expect(
        not torch.allclose(found[0], turns, atol=1e-5),
        "you took gate and up rows in turns; they stand one half after the other",
    )
    want = slow_swiglu(row[0], first[:2], first[2:], down[0])
    close(found[0], want, "one row of expert 0 is not its SwiGLU")

    rows, counts = torch.randn(5, 5), torch.tensor([2, 0, 3])
    found = mine.by_expert(rows, gate_up, down, counts)
    shape(found, (5, 5), "counts 2 0 3: the output")
    want = slow_experts(rows, gate_up, down, counts)
    close(found[:2], want[:2], "counts 2 0 3: the rows of expert 0 are wrong")
    shifted = slow_experts(rows, gate_up, down, torch.tensor([2, 3, 0]))
    expect(
        not torch.allclose(found[2:], shifted[2:], atol=1e-4),
        "counts 2 0 3: expert 1 has no rows, but it got those of expert 2; an expert "
        "without rows keeps its place in the line",
    )
    close(found, want, "counts 2 0 3: the rows of expert 2 are wrong", atol=1e-4)
    none = mine.by_expert(torch.empty(0, 5), gate_up, down, torch.tensor([0, 0, 0]))
    shape(none, (0, 5), "no rows at all: the output")

    for counts in ([0, 0, 4], [7, 0, 0], [1, 2, 3], [0, 3, 0]):
        rows = torch.randn(sum(counts), 5, requires_grad=True)
        each = torch.tensor(counts)
        found = mine.by_expert(rows, gate_up, down, each)
        want = slow_experts(rows, gate_up, down, each)
        close(found, want, f"counts {counts}: differs from the slow version", atol=1e-4)
        _same_gradients(found, want, [rows, gate_up, down])


# 2.4


class Times(nn.Module):
    """Expert e multiplies by e + 1 and checks how it is called."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        expect(
            len(rows) == int(counts.sum()),
            f"the experts got {len(rows)} rows for {int(counts.sum())} picks: a token "
            "goes to each of its K experts",
        )
        factor = torch.arange(1, len(counts) + 1).repeat_interleave(counts)
        return rows * factor.to(rows).unsqueeze(-1)


def routing_to(picks: list[list[int]], weights: Tensor, n_experts: int) -> Routing:
    chosen = torch.tensor(picks)
    counts = torch.bincount(chosen.flatten(), minlength=n_experts)
    return Routing(weights, chosen, torch.empty(0), counts)


def slow_dispatch(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """One token and one pick at a time."""
    inner = experts.down_proj.shape[-1]
    rows = []
    for token, picks, weights in zip(x, routing.experts, routing.weights, strict=True):
        total = torch.zeros_like(token)
        for e, w in zip(picks, weights, strict=True):
            both = experts.gate_up_proj[e]
            parts = both[:inner], both[inner:], experts.down_proj[e]
            total = total + w * slow_swiglu(token, *parts)
        rows.append(total)
    return torch.stack(rows)


def check_2_4(mine: ModuleType) -> None:
    times: Experts = Times()  # type: ignore[assignment]
    x = torch.tensor([[1.0], [10.0], [100.0]])
    # One pick each, already sorted: only the experts and the weights matter.
    simple = routing_to([[0], [1], [3]], torch.tensor([[1.0], [0.5], [0.25]]), 4)
    found = mine.dispatch(x, simple, times)
    shape(found, (3, 1), "the output")
    expect(
        found[:, 0].tolist() != [1.0, 20.0, 400.0],
        "the router's weights are not used, so the router would get no gradient",
    )
    close(found[:, 0], [1.0, 10.0, 100.0], "one pick each, experts 0 1 3 in order")

    # One pick each, in three-cycle order: sort and unsort are different.
    cycle = routing_to([[1], [2], [0]], torch.ones(3, 1), 3)
    found = mine.dispatch(x, cycle, times)[:, 0]
    slips = {
        (100.0, 2.0, 30.0): "the results come back sorted by expert; undo the sort",
        (30.0, 100.0, 2.0): "the way back is the inverse of `order`, not `order` again",
        (20.0, 300.0, 1.0): "the rows were not sorted by expert before they went in",
        (1.0, 20.0, 300.0): "nothing was sorted, so experts got other tokens' rows",
    }
    for wrong, why in slips.items():
        expect(found.tolist() != list(wrong), f"picks 1 2 0: {why}")
    close(found, [2.0, 30.0, 100.0], "picks 1 2 0")

    # Two picks each: now it matters which token a pick belongs to.
    halves = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]])
    two = routing_to([[2, 0], [2, 3], [0, 1]], halves, 4)
    found = mine.dispatch(x, two, times)
    shape(found, (3, 1), "two picks each: the output")
    order = two.experts.flatten().argsort(stable=True)
    rows = x[order // 2, 0] * (two.experts.flatten()[order] + 1)
    early = torch.zeros(3).index_add(0, order // 2, rows * halves.flatten())
    expect(
        not torch.allclose(found[:, 0], early),
        "the weights are in token order, the rows still sorted by expert: unsort "
        "before you multiply",
    )
    close(
        found[:, 0],
        [2.5, 35.0, 187.5],
        "two picks each, picks 2 0, 2 3, 0 1: pick i belongs to token i // K",
    )
    _against_loops(mine)


def _against_loops(mine: ModuleType) -> None:
    config = R1Config.preset("nano").with_(
        hidden_size=12, moe_intermediate_size=8, initializer_range=0.5
    )
    experts = Experts(config)
    for tokens, k in ((1, 1), (7, 3), (20, 2)):
        picks = torch.rand(tokens, 5).topk(k).indices.tolist()  # 5, 6, 7 stay idle
        weights = torch.rand(tokens, k, requires_grad=True)
        routing = routing_to(picks, weights, 8)
        x = torch.randn(tokens, 12, requires_grad=True)
        found = mine.dispatch(x, routing, experts)
        want = slow_dispatch(x, routing, experts)
        place = f"{tokens} tokens, {k} picks, three idle experts"
        close(found, want, f"{place}: differs from the slow version", atol=1e-4)
        _same_gradients(found, want, [x, weights, *experts.parameters()])
    half = mine.dispatch(torch.ones(2, 1).bfloat16(), _even(2), Times())
    expect(half.dtype == torch.bfloat16, f"x is bfloat16, the output {half.dtype}")
    none = mine.dispatch(torch.empty(0, 1), _even(0), Times())
    shape(none, (0, 1), "no tokens: the output")


def _even(tokens: int) -> Routing:
    """Every token to experts 0 and 1, one half each."""
    chosen = torch.tensor([[0, 1]]).repeat(tokens, 1)
    counts = torch.bincount(chosen.flatten(), minlength=3)
    return Routing(torch.full((tokens, 2), 0.5), chosen, torch.empty(0), counts)


# 2.5


def check_2_5(mine: ModuleType) -> None:
    rows = torch.tensor([[2.0], [30.0], [500.0]])
    order = torch.tensor([2, 0, 1])
    found = mine.combine(rows, order, torch.ones(3, 1))
    shape(found, (3, 1), "the output")
    close(
        found[:, 0],
        [30.0, 500.0, 2.0],
        "weights of 1: row i is pick order[i]; the sum itself was right, leave it",
    )
    weights = torch.tensor([[0.1], [0.2], [0.5]])
    found = mine.combine(rows, order, weights)[:, 0]
    slips = {
        (6.0, 250.0, 0.2): "the weights are still in token order, the rows sorted by "
        "expert",
        (15.0, 50.0, 0.4): "weights sorted with the inverse of `order`; row i is pick "
        "order[i] and needs weight number order[i]",
    }
    for wrong, why in slips.items():
        expect(not torch.allclose(found, torch.tensor(wrong), atol=1e-4), why)
    close(found, [3.0, 100.0, 1.0], "three tokens, one pick each", atol=1e-4)

    weights = torch.rand(6, 3, requires_grad=True)
    rows, order = torch.randn(18, 4, requires_grad=True), torch.randperm(18)
    found = mine.combine(rows, order, weights)
    shape(found, (6, 4), "6 tokens, 3 picks: the output")
    want = [torch.zeros(4) for _ in range(6)]
    for i, pick in enumerate(order.tolist()):
        want[pick // 3] = want[pick // 3] + weights[pick // 3, pick % 3] * rows[i]
    close(found, torch.stack(want), "6 tokens, 3 picks: differs from the slow version")
    _same_gradients(found, torch.stack(want), [rows, weights])


# 2.6


def dropped(mine: ModuleType, tokens: int) -> float:
    """Share of the picks that a factor of 1 drops, over the reader's batches."""
    room = expert_capacity(tokens, 2, 8, 1.0)
    lost = [
        int((picks.flatten().bincount(minlength=8) - room).clamp(min=0).sum())
        for picks in mine.even_batches(tokens)
    ]
    return sum(lost) / (len(lost) * tokens * 2)


def check_2_6(mine: ModuleType) -> None:
    given(mine.SMALL, mine.LARGE, mine.WHY)
    small, large = dropped(mine, 32), dropped(mine, 4096)
    expect(0.128 < small < 0.129, "even_batches has changed; put it back")
    expect(
        not math.isclose(mine.SMALL, 2 * small, abs_tol=0.008),
        "SMALL: you divided by the tokens; 32 tokens make 64 picks",
    )
    expect(
        not math.isclose(mine.SMALL, 64 * small, abs_tol=0.1),
        "SMALL: that is the number of dropped picks; divide by all picks",
    )
    expect(
        not math.isclose(mine.SMALL, 100 * small, abs_tol=0.6),
        "SMALL: give the fraction, not per cent",
    )
    expect(
        not math.isclose(mine.SMALL, large, abs_tol=0.004),
        "SMALL: that is the number for the large batches",
    )
    expect(
        mine.SMALL > 0.005,
        "SMALL: an even router drops nothing only if every batch is even; count the "
        "picks of each batch for itself",
    )
    close(mine.SMALL, small, "SMALL: dropped picks / all picks", atol=6e-3)
    close(mine.LARGE, large, "LARGE: dropped picks / all picks", atol=6e-3)
    reasons = {
        "A": "WHY: 64 picks on 8 experts give a capacity of exactly 8; nothing is "
        "rounded in either batch",
        "C": "WHY: both batches have the same 8 experts",
    }
    expect(mine.WHY not in reasons, reasons.get(mine.WHY, ""))
    expect(mine.WHY == "B", 'WHY: answer "A", "B" or "C"')
