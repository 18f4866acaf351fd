"""The expert-parallel dispatcher: tokens travel to the rank that holds the expert.

The same sorted, dropless dispatch as on one device (V3, arXiv 2412.19437, section
3.2.2), with two exchanges in its middle:

    sort by expert -> counts -> rows out -> order by expert -> experts
    -> order by sender -> rows back -> unsort -> weighted sum
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Routing
from r1lite.parallel.exchange import exchange, exchange_counts


class ExpertParallel:
    """Takes the place of `dispatch_local` when experts are spread over a group.

    Rank r of the group holds experts r * n to (r + 1) * n - 1. Every rank of the
    group has to call it for the same layer at the same time, even with no token.

    Attributes:
        sent_rows: rows this rank sent to others in the last call.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.sent_rows = 0

    def __call__(self, x: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """x: (T, hidden), this rank's tokens -> (T, hidden).

        Raises:
            R1Error: the router's experts are not the ranks' experts together.
        """
        n_tokens, top_k = routing.experts.shape
        local = experts.down_proj.shape[0]
        if local * self.ranks != routing.counts.numel():
            raise R1Error(
                f"experts: {local} here times {self.ranks} ranks are not the router's "
                f"{routing.counts.numel()}; call shard_experts_ on the model first"
            )
        # Stable, so that the sums' order, hence every bit, depends on data alone.
        order = routing.experts.flatten().argsort(stable=True)
        counts = routing.counts.view(self.ranks, local)
        arriving = exchange_counts(counts, self.group)
        # The host has to know the sizes before it can post the exchange.
        send, receive = counts.sum(1).tolist(), arriving.sum(1).tolist()
        self.sent_rows = len(order) - send[dist.get_rank(self.group)]
        rows = exchange(x[order // top_k], send, receive, self.group)
        by_expert = _expert_major(arriving)
        done = experts(rows[by_expert], arriving.sum(0))
        done = exchange(done[inverse(by_expert)], receive, send, self.group)
        picks = done[inverse(order)].view(n_tokens, top_k, x.shape[-1])
        return (picks * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)


def _expert_major(arriving: Tensor) -> Tensor:
    """The order that turns rows sorted by (sender, expert) into (expert, sender).

    arriving: (ranks, local experts) counts. Returns (rows,) int64.
    """
    ranks, local = arriving.shape
    expert = torch.arange(local, device=arriving.device).repeat(ranks)
    return expert.repeat_interleave(arriving.flatten()).argsort(stable=True)


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`, (n,) int64."""
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return back
