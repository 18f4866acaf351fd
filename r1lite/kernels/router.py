"""The router in one pass: scores, groups, picks, weights, counts (V3, section 2.1.2).

    s = sigmoid(z) or softmax(z),  choice = s + bias
    group score = sum of its `best` highest choices; outside the best groups: -inf
    picks = the K highest choices,  w_k = c * s_k / (sum_j s_j + 1e-20)

    ds_k = c (dw_k - (sum_j dw_j s_j) / D) / D  with D = sum_j s_j + 1e-20
    dz = ds s (1 - s), or for softmax s (ds - sum ds s)

PyTorch takes twenty launches for it, and its `bincount` makes the host wait. Of equal
choices the lower index wins, among groups as among experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import jit, power_of_two, tl, triton, use_triton
from r1lite.moe.gating import Routing, keep_best_groups

ROWS = 4  # tokens of one program


def route_reference(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: int = 1,
    keep: int = 1,
    softmax: bool = False,
    normalize: bool = True,
    scaling: float = 1.0,
) -> Routing:
    """What `route` computes, and what `r1lite.moe.gating.Router` does."""
    logits = logits.float()
    scores = logits.softmax(-1) if softmax else logits.sigmoid()
    choice = scores.detach()
    if bias is not None:
        choice = choice + bias
    if keep < groups:
        choice = keep_best_groups(choice, groups, keep, 1 if bias is None else 2)
    experts = choice.topk(top_k, -1, sorted=False).indices
    weights = scores.gather(-1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    counts = torch.bincount(experts.flatten(), minlength=logits.shape[-1])
    return Routing(weights * scaling, experts, scores, counts)


@jit
def _best_groups(choice, keep: tl.constexpr, BEST: tl.constexpr):
    """choice (rows, G, S) -> (rows, G), 1 for the `keep` best groups of each row."""
    total = tl.max(choice, 2)
    if BEST == 2:
        first = tl.argmax(choice, 2)
        member = tl.arange(0, choice.shape[2])[None, None, :]
        others = tl.where(member == first[:, :, None], float("-inf"), choice)
        total += tl.max(others, 2)
    group = tl.arange(0, choice.shape[1])[None, :]
    kept = tl.zeros(total.shape, tl.int32)
    for _ in tl.static_range(keep):
        hit = group == tl.argmax(total, 1)[:, None]
        kept = tl.where(hit, 1, kept)
        total = tl.where(hit, float("-inf"), total)
    return kept


@jit
def _route(
    logits, bias, weights, experts, scores, counts,
    rows, stride, groups, size, scaling,
    top_k: tl.constexpr, keep: tl.constexpr,
    SOFTMAX: tl.constexpr, BIASED: tl.constexpr, LIMITED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """ROWS tokens. Experts stand as G groups of S, both rounded up to powers of two."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, G * S)
    expert = column // S * size + column % S
    exists = (column // S < groups) & (column % S < size)
    here = row < rows
    real = here[:, None] & exists[None, :]
    outside = tl.where(here, float("-inf"), 0.0)[:, None]  # no row of -inf alone
    s = tl.load(logits + row[:, None] * stride + expert[None, :], mask=real, other=0.0)
    s = tl.where(real, s.to(tl.float32), outside)
    if SOFTMAX:
        s = tl.exp(s - tl.max(s, 1)[:, None])
        s = s / tl.sum(s, 1)[:, None]
    else:
        s = 1.0 / (1.0 + tl.exp(-s))
    kept_scores = scores + row[:, None] * (groups * size) + expert[None, :]
    tl.store(kept_scores, s, mask=real)
    left = s
    if BIASED:
        left += tl.load(bias + expert, mask=exists, other=0.0)[None, :]
    # Not a number (NaN) equals nothing, itself neither: it is never picked.
    left = tl.where(real & (left == left), left, float("-inf"))
    if LIMITED:
        kept = _best_groups(tl.reshape(left, (ROWS, G, S)), keep, 2 if BIASED else 1)
        kept = tl.broadcast_to(kept[:, :, None], (ROWS, G, S))
        left = tl.where(tl.reshape(kept, (ROWS, G * S)) > 0, left, float("-inf"))
    pick = tl.arange(0, K)[None, :]
    chosen = tl.zeros((ROWS, K), tl.int32)
    w = tl.zeros((ROWS, K), tl.float32)
    for k in tl.static_range(top_k):
        best = tl.argmax(left, 1)[:, None]
        hit = column[None, :] == best
        left = tl.where(hit, float("-inf"), left)
        chosen = tl.where(pick == k, best // S * size + best % S, chosen)
        w = tl.where(pick == k, tl.sum(tl.where(hit, s, 0.0), 1)[:, None], w)
    if NORMALIZE:
        w = w / (tl.sum(w, 1) + 1e-20)[:, None]
    place, mask = row[:, None] * top_k + pick, here[:, None] & (pick < top_k)
    tl.store(weights + place, w * scaling, mask=mask)
    tl.store(experts + place, chosen.to(tl.int64), mask=mask)
    # Whole numbers add up to the same in any order.
    tl.atomic_add(counts + chosen, 1, mask=mask, sem="relaxed")


@jit
def _slope(
    dweights, dscores, experts, scores, dlogits, rows, every, scaling,
    top_k: tl.constexpr, SOFTMAX: tl.constexpr, NORMALIZE: tl.constexpr,
    SIZE: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The gradient of one token's logits, from its weights and its scores."""
    row = tl.program_id(0).to(tl.int64)
    at, pick = tl.arange(0, SIZE), tl.arange(0, K)
    inside, picked = at < every, pick < top_k
    s = tl.load(scores + row * every + at, mask=inside, other=0.0)
    ds = tl.load(dscores + row * every + at, mask=inside, other=0.0)
    chosen = tl.load(experts + row * top_k + pick, mask=picked, other=-1)
    dw = tl.load(dweights + row * top_k + pick, mask=picked, other=0.0) * scaling
    mine = tl.load(scores + row * every + chosen, mask=picked, other=0.0)
    if NORMALIZE:
        total = tl.sum(mine, 0) + 1e-20
        dw = (dw - tl.sum(dw * mine, 0) / total) / total
    hit = at[:, None] == chosen[None, :]
    ds += tl.sum(tl.where(hit, dw[None, :], 0.0), 1)
    dz = s * (ds - tl.sum(ds * s, 0)) if SOFTMAX else ds * s * (1.0 - s)
    tl.store(dlogits + row * every + at, dz, mask=inside)


@torch.library.custom_op("r1lite::route", mutates_args=())
def _op(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: int,
    keep: int,
    softmax: bool,
    normalize: bool,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights, experts, scores, counts = _empty(logits, top_k)
    counts.zero_()
    rows, size = len(logits), logits.shape[1] // groups
    if rows:
        _route[(triton.cdiv(rows, ROWS),)](
            *(logits, logits if bias is None else bias),
            *(weights, experts, scores, counts),
            *(rows, logits.stride(0), groups, size, scaling, top_k, keep),
            *(softmax, bias is not None, keep < groups, normalize),
            *(ROWS, power_of_two(groups), power_of_two(size), power_of_two(top_k)),
        )
    return weights, experts, scores, counts


def _empty(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, every = logits.shape
    return (
        logits.new_empty(rows, top_k, dtype=torch.float32),
        logits.new_empty(rows, top_k, dtype=torch.int64),
        logits.new_empty(rows, every, dtype=torch.float32),
        logits.new_empty(every, dtype=torch.int64),
    )


@_op.register_fake
def _(
    logits: Tensor, bias: Tensor | None, top_k: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(logits, top_k)


@torch.library.custom_op("r1lite::route_backward", mutates_args=())
def _backward(
    dweights: Tensor,
    dscores: Tensor,
    experts: Tensor,
    scores: Tensor,
    softmax: bool,
    normalize: bool,
    scaling: float,
) -> Tensor:
    (rows, every), top_k = scores.shape, experts.shape[1]
    dlogits = torch.empty_like(scores)
    if rows:
        _slope[(rows,)](
            *(dweights, dscores, experts, scores, dlogits, rows, every, scaling),
            *(top_k, softmax, normalize, power_of_two(every), power_of_two(top_k)),
        )
    return dlogits


@_backward.register_fake
def _(dweights: Tensor, dscores: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(dscores)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, _, _, _, *ctx.rest = inputs
    ctx.dtype = logits.dtype
    ctx.save_for_backward(output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[3])


def _gradient(
    ctx: Any, dweights: Tensor, _: Any, dscores: Tensor, __: Any
) -> tuple[Tensor | None, ...]:
    given = dweights.contiguous(), dscores.contiguous(), *ctx.saved_tensors
    return _backward(*given, *ctx.rest).to(ctx.dtype), *[None] * 7


_op.register_autograd(_gradient, setup_context=_keep)


def route(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: int = 1,
    keep: int = 1,
    softmax: bool = False,
    normalize: bool = True,
    scaling: float = 1.0,
) -> Routing:
    """Who gets each token.

    Args:
        logits: (tokens, experts).
        bias: (experts,) float32, added to choose only; None for V2's softmax router,
            whose groups are then judged by their best member and not by their best two.
        top_k: picks of a token, among its `keep` best of `groups` equal groups.
        softmax: score with a softmax instead of a sigmoid.
        normalize, scaling: divide a token's weights by their sum; multiply by this.

    Raises:
        R1Error: groups that do not divide the experts, or hold too few of them.
    """
    every = logits.shape[-1]
    if groups < 1 or every % groups or not 1 <= top_k <= keep * (every // groups):
        raise R1Error(
            f"route: {top_k} picks in {keep} of {groups} groups of {every} experts; "
            "give groups that divide the experts and hold the picks"
        )
    if not use_triton(logits):
        reference = logits, bias, top_k, groups, keep, softmax, normalize, scaling
        return route_reference(*reference)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    bias = None if bias is None else bias.contiguous()
    given = logits, bias, top_k, groups, keep, softmax, normalize, scaling
    return Routing(*_op(*given))
