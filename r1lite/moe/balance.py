"""Keeping experts equally busy without a loss that fights the language loss.

The bias update is arXiv 2408.15664, algorithm 1, with V3's section 4.2 numbers
(gamma 0.001). The sequence-wise loss is V3's equations 17 to 20.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.moe.gating import LastScores, Router


def routers(model: nn.Module) -> list[Router]:
    """Every router in the model, in order; the MTP block's comes last."""
    return [m for m in model.modules() if isinstance(m, Router)]


def expert_load(model: nn.Module) -> Tensor:
    """(routers, experts) int64 tokens counted since the last bias update."""
    found = routers(model)
    if not found:
        return torch.zeros(0, 0, dtype=torch.int64)
    return torch.stack([r.counts for r in found])


@torch.no_grad()
def update_bias_(model: nn.Module, gamma: float) -> Tensor:
    """Move each expert's bias by gamma towards the mean load, reset the counts.

    b_i += gamma * sign(mean load - load_i), once per optimizer step. Counts
    come from training-mode forwards with gradients on; activation
    checkpointing counts twice, which the sign does not see.

    Returns:
        (routers, experts) int64: the load the update was based on.
    """
    load = expert_load(model)
    for router, counts in zip(routers(model), load, strict=True):
        if gamma:
            # counts * E against the total: exact in integers, no mean to round
            error = counts.sum() - counts * counts.numel()
            router.e_score_correction_bias += gamma * error.sign()
        router.counts.zero_()
        router.last = None
    return load


def _sequence_loss(last: LastScores, mask: Tensor | None) -> Tensor:
    scores, top_k = last
    n_experts = scores.shape[-1]
    picks = scores.detach().topk(top_k, dim=-1).indices
    picked = torch.zeros_like(scores).scatter_(-1, picks, 1.0)
    share = F.normalize(scores, p=1, dim=-1)
    if mask is None:
        load, prob = picked.mean(-2), share.mean(-2)
    else:
        weight = mask.to(scores.dtype)
        weight = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
        load, prob = (picked * weight).sum(-2), (share * weight).sum(-2)
    return (load * prob).sum(-1).mean() * (n_experts / top_k)


def sequence_balance_loss(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """Mean over layers and sequences of sum_i f_i P_i, without alpha.

    f_i is the fraction of a sequence's tokens whose unbiased top-K holds
    expert i, scaled so that perfect balance gives 1; P_i is the mean share of
    the score. Uses the last training forward, once.

    Args:
        mask: (batch, seq), True where a token is real; None counts all.
    """
    kept = [r.last for r in routers(model) if r.last is not None]
    for router in routers(model):
        router.last = None
    if not kept:
        return torch.zeros(())
    return torch.stack([_sequence_loss(last, mask) for last in kept]).mean()


def max_violation(load: Tensor) -> Tensor:
    """(max load - mean) / mean per row: 0 is perfect (2408.15664, section 4.1).

    Args:
        load: (..., experts) counts.
    """
    mean = load.double().mean(-1).clamp(min=1e-12)
    return (load.amax(-1) - mean) / mean


def load_entropy(load: Tensor) -> Tensor:
    """Entropy of the load divided by log(experts): 1 is even, 0 one expert."""
    share = load.double() / load.double().sum(-1, keepdim=True).clamp(min=1e-12)
    log_e = torch.tensor(float(load.shape[-1])).double().log().clamp(min=1e-12)
    return torch.special.entr(share).sum(-1) / log_e
