"""Balance losses of one router: what it did with its last training batch.

Each takes a router's :class:`LastScores` and gives a scalar whose gradient
reaches the router's weight; :mod:`r1lite.moe.balance` averages over a model.
Masks are (batch, seq), True where a token is real; None counts all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.moe.gating import LastScores


def sequence_loss(last: LastScores, mask: Tensor | None = None) -> Tensor:
    """Mean over sequences of sum_i f_i P_i (V3, equations 17 to 20, no alpha).

    f_i is the fraction of a sequence's tokens whose unbiased top-K holds
    expert i, scaled so that perfect balance gives 1; P_i is the mean share of
    the score. Only P carries a gradient.
    """
    scores, top_k = last.scores, last.top_k
    best = scores.detach().topk(top_k, dim=-1).indices
    f = _mean(torch.zeros_like(scores).scatter_(-1, best, 1.0), mask)
    p = _mean(F.normalize(scores, p=1, dim=-1), mask)
    return (f * p).sum(-1).mean() * (scores.shape[-1] / top_k)


def switch_loss(last: LastScores, mask: Tensor | None = None) -> Tensor:
    """E sum_i f_i P_i over the whole batch (Switch, arXiv 2101.03961, eq. 4-6).

    f_i is the share of all picks that really went to expert i, groups and
    bias included; P_i the mean share of the score (for a softmax router: the
    mean probability). With K picks as in GShard (arXiv 2006.16668). Perfect
    balance gives 1.
    """
    scores, experts = last.scores.flatten(0, -2), last.experts.flatten(0, -2)
    real = None if mask is None else mask.flatten()
    f = _mean(torch.zeros_like(scores).scatter_(-1, experts, 1.0), real)
    p = _mean(F.normalize(scores, p=1, dim=-1), real)
    return (f * p).sum() * (scores.shape[-1] / last.top_k)


def z_loss(last: LastScores, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5).

    It keeps logits small, so that their softmax stays exact in few bits. A
    softmax does not notice where they settle. Sigmoid scores do: they are
    drawn towards 1 / E.
    """
    squared = last.logits.logsumexp(-1).square()
    if mask is None:
        return squared.mean()
    return (squared * mask).sum() / mask.sum().clamp(min=1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens: (..., seq, E) and mask (..., seq) -> (..., E)."""
    if mask is None:
        return values.mean(-2)
    weight = mask.to(values.dtype)
    weight = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    return (values * weight).sum(-2)
