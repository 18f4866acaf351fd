"""The cross-entropy of every training stage: from hidden states, through the head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.hot import hot


@hot
def head_loss(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    reduction: str = "mean",
    temperature: float = 1.0,
) -> Tensor:
    """-log p(target) in nats, in float32; logits are divided by `temperature`.

    They are the largest tensor of a training step, so nothing but this function
    holds them: a kernel that never has all of them can take its place.

    Args:
        hidden: (tokens, hidden), after the final norm; targets: (tokens,) int64,
            all in the vocabulary: a kernel knows no index to ignore.
        reduction: "mean", "sum" or "none".

    Returns:
        (), or (tokens,) with "none".
    """
    logits = head(hidden).float()
    if temperature != 1.0:
        logits = logits / temperature
    return F.cross_entropy(logits, targets, reduction=reduction)
