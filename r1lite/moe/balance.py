"""Keeping experts equally busy without a loss that fights the language loss.

The bias update is arXiv 2408.15664, algorithm 1, with V3's section 4.2 numbers
(gamma 0.001). The losses beside it are one router's in
:mod:`r1lite.moe.losses` and a whole model's here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from r1lite.moe import losses
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
    come from training-mode forwards with gradients on. A plain activation
    checkpoint repeats the forward and counts twice, which the sign does not see.

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


def sequence_balance_loss(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """V3's loss on each sequence (eq. 17 to 20), mean over layers, no alpha.

    Like the two below it reads the last training forward, which is kept until
    the next one or until `update_bias_`; 0 if there is none.

    Args:
        mask: (batch, seq), True where a token is real; None counts all. A shorter
            MTP block sees its beginning.
    """
    return _over_layers(model, losses.sequence_loss, mask)


def switch_balance_loss(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """Switch's and GShard's loss on the batch, mean over layers; 1 is even.

    Switch weighs it with 0.01 (arXiv 2101.03961, section 2.2). Accumulating
    gradients, each micro-batch is balanced for itself.
    """
    return _over_layers(model, losses.switch_loss, mask)


def router_z_loss(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """ST-MoE's router z-loss, mean over layers; the paper weighs it with 0.001."""
    return _over_layers(model, losses.z_loss, mask)


def balance_loss(
    model: nn.Module,
    alpha: float = 0.0,
    switch: float = 0.0,
    z: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The weighted sum of the three losses above; weight 0 leaves one out."""
    total = torch.zeros(())
    if alpha:
        total = total + alpha * sequence_balance_loss(model, mask)
    if switch:
        total = total + switch * switch_balance_loss(model, mask)
    if z:
        total = total + z * router_z_loss(model, mask)
    return total


def _over_layers(
    model: nn.Module,
    loss: Callable[[LastScores, Tensor | None], Tensor],
    mask: Tensor | None,
) -> Tensor:
    """Mean of `loss` over the routers that have seen a training batch."""
    kept = [r.last for r in routers(model) if r.last is not None]
    if not kept:
        return torch.zeros(())
    found = []
    for last in kept:
        # The MTP block's sequences are one shorter: without their last token.
        real = None if mask is None else mask[:, : last.scores.shape[-2]]
        found.append(loss(last, real))
    return torch.stack(found).mean()


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
