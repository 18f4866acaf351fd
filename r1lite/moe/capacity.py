"""Capacity: a limit on what one expert may take, and what is dropped for it.

GShard (arXiv 2006.16668) and Switch (arXiv 2101.03961, section 2.2) give every
expert room for its fair share times a factor, so that all experts compute
blocks of one fixed size. What does not fit is dropped: for that pick the token
gets nothing. V3 drops nothing and does not use this; it is here to be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Routing

PRIORITIES = ("order", "weight")


def expert_capacity(tokens: int, top_k: int, n_experts: int, factor: float) -> int:
    """ceil(tokens * top_k / n_experts * factor): picks that one expert takes.

    Switch, equation 3, with the top_k of GShard. Counted in exact fractions of
    the decimal that was typed: in floats ceil(1000 / 10 * 1.1) is 111.
    """
    return math.ceil(Fraction(str(factor)) * tokens * top_k / n_experts)


@dataclass(frozen=True)
class DropStats:
    """What one pass through a layer with a capacity did. E experts."""

    capacity: int  # picks that each expert had room for
    wanted: Tensor  # (E,) int64, picks the router sent to each expert
    kept: Tensor  # (T, K) bool, the picks that were computed

    @property
    def dropped(self) -> Tensor:
        """(E,) int64: picks that each expert turned away."""
        return (self.wanted - self.capacity).clamp(min=0)

    @property
    def drop_share(self) -> float:
        """Dropped picks among all picks, 0 to 1."""
        return int(self.dropped.sum()) / max(1, self.kept.numel())

    @property
    def lost_tokens(self) -> int:
        """Tokens that no routed expert saw."""
        return int((~self.kept.any(-1)).sum())

    @property
    def padding_share(self) -> float:
        """Empty places among all E * capacity that a fixed shape computes."""
        room = self.capacity * self.wanted.numel()
        return 1 - int(self.kept.sum()) / max(1, room)


class CapacityDispatch:
    """A dispatcher for MoE that drops what exceeds the capacity.

    Weights are not renormalised: a token with a dropped pick is quieter, one
    that lost all picks keeps only the shared expert and the residual stream.

    Args:
        factor: 1.0 leaves room for a perfectly even load. From n_experts /
            top_k on nothing can be dropped, and the result is that of
            :func:`r1lite.moe.dispatch.dispatch_local`.
        priority: "order" serves earlier tokens first (Switch), "weight" the
            picks with the largest router weight (after V-MoE, arXiv 2106.05974).

    Raises:
        R1Error: a factor that is no positive number, or an unknown priority.
    """

    def __init__(self, factor: float, priority: str = "order") -> None:
        if not 0 < factor < math.inf:
            raise R1Error(
                f"capacity.factor: {factor} leaves no room or has no end; "
                "give a number above 0, such as 1.25"
            )
        if priority not in PRIORITIES:
            raise R1Error(
                f"capacity.priority: {priority!r} is unknown; choose "
                + " or ".join(PRIORITIES)
            )
        self.factor = factor
        self.priority = priority
        self.last: DropStats | None = None

    def __call__(self, x: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Weighted sum of the picks that fit: x (T, hidden) -> (T, hidden).

        Leaves what it did in ``last``.
        """
        n_tokens, top_k = routing.experts.shape
        wanted = routing.counts
        room = expert_capacity(n_tokens, top_k, wanted.numel(), self.factor)
        order, place = self._queue(routing)
        served = order[place < room]
        rows = experts(x[served // top_k], wanted.clamp(max=room))
        # Zeros for dropped picks; the sum then adds in dispatch_local's order.
        picks = rows.new_zeros(n_tokens * top_k, x.shape[-1])
        picks = picks.index_copy(0, served, rows).view(n_tokens, top_k, x.shape[-1])
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept[served] = True
        self.last = DropStats(room, wanted, kept.view(n_tokens, top_k))
        return (picks * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)

    def _queue(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """The picks sorted by expert, and each one's place in its queue.

        Returns:
            order, place: (T * K,) int64; pick order[i] stands at place[i].
        """
        experts = routing.experts.flatten()
        if self.priority == "order":
            order = experts.argsort(stable=True)
        else:
            # Sort by the second key first; the stable sort keeps that order.
            heavy = routing.weights.detach().flatten()
            heavy = heavy.argsort(descending=True, stable=True)
            order = heavy[experts[heavy].argsort(stable=True)]
        starts = routing.counts.cumsum(0) - routing.counts
        place = torch.arange(order.numel(), device=order.device)
        return order, place - starts[experts[order]]
