"""Bringing tokens to their experts and back: sorted, dropless, local.

Sort the (token, pick) pairs by expert, run each expert on one contiguous
block, undo the sort, add up with the router's weights. No token is dropped
(V3, section 2.1.2) and no capacity is set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.hot import hot
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Routing


@hot
def dispatch_local(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Weighted sum of each token's experts, all experts on this device.

    Args:
        x: (T, hidden).

    Returns:
        (T, hidden) in x's dtype.
    """
    n_tokens, top_k = routing.experts.shape
    # Stable, so that the sums' order, hence every bit, depends on data alone.
    order = routing.experts.flatten().argsort(stable=True)
    rows = experts(x[order // top_k], routing.counts)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    picks = rows[back].view(n_tokens, top_k, x.shape[-1])
    return (picks * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)
