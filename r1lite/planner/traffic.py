"""Rows that ranks send each other to bring tokens to experts.

Expected for a router that spreads its picks evenly, and counted from picks that
were made. One way, per MoE layer: combining sends as many back, and the backward
pass does both again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.config import R1Config


class Rows(NamedTuple):
    """Rows sent to other nodes, and to other ranks of the same node."""

    across: float
    inside: float


def expected_rows(
    c: R1Config, ranks: int, node_size: int, node_limit: int | None = None
) -> Rows:
    """Rows of one token, on average over tokens and even picks.

    Args:
        node_limit: nodes a token may go to, with a row once to each and once to each
            rank there (`NodeLimited`); None sends a row per pick (`ExpertParallel`).

    K different experts are drawn evenly from those of `node_limit` nodes. A real
    router keeps the nodes whose best scores are high, so it meets more: 8 % in V3's
    shape (tests/planner/test_traffic.py).
    """
    nodes = max(1, ranks // node_size)
    each = ranks // nodes  # ranks of a node
    if node_limit is None:
        per_rank = c.num_experts_per_tok / ranks
        return Rows((ranks - each) * per_rank, (each - 1) * per_rank)
    share = min(node_limit, nodes) / nodes
    open_ = round(c.n_routed_experts * share)

    def met(places: int) -> float:
        """How likely a token has an expert in one place of so many."""
        missed = comb(open_ - c.n_routed_experts // places, c.num_experts_per_tok)
        return share * (1 - missed / comb(open_, c.num_experts_per_tok))

    # Every node has one rank in the sender's place, which hands rows on.
    return Rows((nodes - 1) * met(nodes), (ranks - nodes) * met(ranks))


def counted_rows(
    picks: Sequence[Tensor], n_experts: int, node_size: int, by_node: bool
) -> list[Rows]:
    """What each rank sends when these picks are made; exact.

    Args:
        picks: for each rank (T, K) experts, T may differ and be 0.
        by_node: as `NodeLimited` sends, not as `ExpertParallel`.
    """
    ranks = len(picks)
    across, inside = torch.zeros(ranks), torch.zeros(ranks)
    for rank, experts in enumerate(picks):
        node, place = divmod(rank, node_size)
        of_rank = F.one_hot(experts // (n_experts // ranks), ranks).sum(1)  # (T, ranks)
        if not by_node:
            sent = of_rank.sum(0).view(-1, node_size)
            inside[rank] += sent[node].sum() - sent[node, place]
            across[rank] += sent.sum() - sent[node].sum()
            continue
        met = (of_rank > 0).unflatten(1, (ranks // node_size, node_size))
        at_node = met.any(2).sum(0)
        across[rank] += at_node.sum() - at_node[node]
        # Node by node, what the rank in this place hands on to the others there.
        inside[place::node_size] += met.sum((0, 2)) - met[..., place].sum(0)
    return [Rows(int(a), int(b)) for a, b in zip(across, inside, strict=True)]
