"""Exercises of chapter 02: experts, dispatch and capacity.

Letters as in the chapter: T tokens, E experts, K picks per token, N = T * K rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.moe.experts import Experts, SwiGLU
from r1lite.moe.gating import Routing

# %% 2.1 | Who finds a place | predict | level 1 | 5 min
# Twelve tokens make two picks each. The four experts are asked for 12, 6, 4 and
# 2 of them. The capacity factor is 1.25.
#
# ROOM: picks that one expert can take.
# DROPPED: picks that are dropped, over all experts.
# EMPTY: places that stay empty, over all experts.
#
# Paper first, then r1lite.moe.capacity.
# HINT: the fair share counts picks, not tokens: there are 24 of them.
# HINT: 24 / 4 * 1.25 = 7.5, and a capacity is rounded up.
# HINT: only expert 0 is asked for more than 8. The others fill 6, 4 and 2 places.
# SOLUTION
ROOM: int | None = 8
DROPPED: int | None = 4
EMPTY: int | None = 12
# STUB
# ROOM: int | None = None  # picks
# DROPPED: int | None = None  # picks
# EMPTY: int | None = None  # places
# END


# %% 2.2 | One expert | fill | level 1 | 5 min | swaps r1lite.moe.experts.SwiGLU.forward
# down(silu(gate(x)) * up(x)), the MLP of V3: x (..., hidden) -> (..., hidden).
#
# self.gate_proj and self.up_proj lead from hidden to inner, self.down_proj
# leads back.
# HINT: F.silu(z) is z * sigmoid(z). It bends the gate alone.
# HINT: gate and up both read x; their product is taken element by element.
# HINT: self.down_proj(F.silu(...) * ...), with the gate inside the silu.
def swiglu_forward(self: SwiGLU, x: Tensor) -> Tensor:
    """x: (..., hidden) -> (..., hidden)."""
    # SOLUTION
    return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    # STUB
    # raise NotImplementedError("2.2: gate, up, product, down")
    # END


# %% 2.3 | Expert after expert | fill | level 2 | 15 min | swaps r1lite.moe.experts.grouped
# rows (N, hidden) are sorted: the first counts[0] belong to expert 0, the next
# counts[1] to expert 1, and so on. counts (E,) adds up to N and may hold zeros.
#
# Expert e has gate_up[e] (2 * inner, hidden), its gate rows first, then its up
# rows, and down[e] (hidden, inner). Return what the experts make of the rows, in
# the same order. All counts may be zero.
# HINT: rows.split(counts.tolist()) gives one block for each expert, empty ones
#   included.
# HINT: F.linear(block, gate_up[e]) is (n, 2 * inner); chunk(2, -1) cuts it into
#   gate and up.
# HINT: torch.cat joins the results. It refuses an empty list, so when there are
#   no rows at all, return `rows`.
def by_expert(rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor) -> Tensor:
    """Each expert on its block of rows: (N, hidden) -> (N, hidden)."""
    # SOLUTION
    done = []
    blocks = rows.split(counts.tolist())
    for block, w_in, w_out in zip(blocks, gate_up.unbind(), down.unbind(), strict=True):
        if len(block):
            gate, up = F.linear(block, w_in).chunk(2, -1)
            done.append(F.linear(F.silu(gate) * up, w_out))
    return torch.cat(done) if done else rows
    # STUB
    # raise NotImplementedError("2.3: run each expert on its block")
    # END


# %% 2.4 | There and back | fill | level 3 | 25 min | swaps r1lite.moe.dispatch.dispatch_local
# Bring each token to its K experts and add up what they return: x (T, hidden) ->
# (T, hidden), in x's dtype.
#
# routing.experts (T, K) int64 and routing.weights (T, K) float32 are the router's;
# routing.counts (E,) says how many rows each expert gets.
# experts(rows, counts) takes (N, hidden), sorted by expert, and returns the same
# shape in the same order. Call it once.
# HINT: number the picks 0 .. N - 1, token after token: pick i belongs to token
#   i // K. A stable argsort of the flattened experts says in which order they go.
# HINT: the rows are x[order // K]. What comes back is in sorted order; row i of it
#   is pick order[i].
# HINT: order.argsort() undoes the sort. Then view as (T, K, hidden), multiply with
#   the weights (T, K, 1) and sum over K.
def dispatch(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Weighted sum of each token's experts: x (T, hidden) -> (T, hidden)."""
    # SOLUTION
    n_tokens, top_k = routing.experts.shape
    order = routing.experts.flatten().argsort(stable=True)
    rows = experts(x[order // top_k], routing.counts)
    back = order.argsort()
    picks = rows[back].view(n_tokens, top_k, x.shape[-1])
    weights = routing.weights.to(x.dtype).unsqueeze(-1)
    return (picks * weights).sum(1)
    # STUB
    # raise NotImplementedError("2.4: sort, run the experts, unsort, weigh, sum")
    # END


# %% 2.5 | Fine with one pick, bad with two | bug | level 2 | 10 min
# This combine passed every test with K = 1 and renormalised weights, then a
# model with K = 2 learned badly. Find the bug and repair it.
#
# rows (N, hidden) come from the experts, sorted by expert; order (N,) says which
# pick each row is; weights (T, K) are the router's. Returns (T, hidden).
# HINT: with one renormalised pick every weight is 1. What could go unnoticed then?
# HINT: write down for each tensor whether it is in token order or sorted by expert.
# HINT: row i is pick order[i], so it needs weight number order[i].
def combine(rows: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Each token's weighted sum: (N, hidden) -> (T, hidden)."""
    n_tokens, top_k = weights.shape
    # SOLUTION
    rows = rows * weights.flatten()[order].unsqueeze(-1)
    # STUB
    # rows = rows * weights.flatten().unsqueeze(-1)
    # END
    out = rows.new_zeros(n_tokens, rows.shape[-1])
    return out.index_add(0, order // top_k, rows)


# %% 2.6 | An even router that drops | measure | level 2 | 15 min
# even_batches(tokens) draws 100 batches of picks (tokens, 2) from a router that
# has no favourite among its 8 experts. The capacity factor is 1.0.
#
# SMALL: share of all picks that is dropped in batches of 32 tokens.
# LARGE: the same in batches of 4096 tokens. Both to two decimals.
# WHY: the letter of the explanation that fits both numbers.
#   "A" an even router needs no more than a factor of 1, so what is dropped is
#       rounding: the capacity is cut to a whole number;
#   "B" even on average is not even in each batch: counts scatter by about the
#       square root of their mean, which is much of a small count, little of a
#       large one;
#   "C" larger batches have more experts to choose from.
# HINT: picks.flatten().bincount(minlength=8) is what each expert is asked for.
# HINT: (wanted - expert_capacity(tokens, 2, 8, 1.0)).clamp(min=0).sum() picks of
#   tokens * 2 are dropped; expert_capacity is in r1lite.moe.capacity.
# HINT: a batch of 32 tokens asks each expert for 8 picks, give or take 2 or 3.
def even_batches(tokens: int) -> list[Tensor]:
    """100 batches of picks (tokens, 2), all experts equally likely."""
    seeded = torch.Generator().manual_seed(0)
    liking = torch.rand(100, tokens, 8, generator=seeded)
    return list(liking.topk(2).indices)


# SOLUTION
SMALL: float | None = 0.13
LARGE: float | None = 0.01
WHY: str | None = "B"
# STUB
# SMALL: float | None = None  # a fraction of all picks
# LARGE: float | None = None  # the same
# WHY: str | None = None  # "A", "B" or "C"
# END
