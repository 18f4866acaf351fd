"""Dispatch by nodes: a token's row crosses to a node once, whatever it needs there.

Machines are joined by a slow network, the GPUs of one by a fast one (V3: 50 and
160 GB/s). The router lets a token go to M = 4 machines at most (V3, arXiv
2412.19437, section 2.1.2, `n_group` and `topk_group` here); the dispatcher sends
it to each of them once, to the rank with its sender's place in the node, which
hands it on inside (section 3.2.2). Results are summed up on the way back:

    token -> nodes -> ranks of the node -> experts
    sum   <- sum   <- weighted sum      <-
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.moe.experts import Experts
from r1lite.moe.gating import Router, Routing
from r1lite.parallel.exchange import exchange, exchange_counts
from r1lite.parallel.shard import moe_layers


@dataclass(frozen=True)
class Nodes:
    """An expert-parallel group cut into nodes of neighbours.

    Attributes:
        across: the ranks with this one's place in each node, node by node.
        inside: the ranks of this one's node.
    """

    across: dist.ProcessGroup
    inside: dist.ProcessGroup

    @property
    def shape(self) -> tuple[int, int]:
        """(nodes, ranks of a node)."""
        return dist.get_world_size(self.across), dist.get_world_size(self.inside)


def make_nodes(
    group: dist.ProcessGroup, node_size: int, timeout_s: float = 600.0
) -> Nodes:
    """Cut `group` into nodes; every rank of it has to call this.

    Args:
        node_size: ranks of a node, 8 in V3. Ranks 0 to 7 of the group are one.

    Raises:
        R1Error: the nodes would not be of equal size.
    """
    ranks = dist.get_process_group_ranks(group)
    if node_size < 1 or len(ranks) % node_size:
        raise R1Error(
            f"node_size: {node_size} does not divide {len(ranks)} ranks; choose a "
            "divisor"
        )
    node, place = divmod(dist.get_rank(group), node_size)
    first = node * node_size

    def subgroup(members: list[int]) -> dist.ProcessGroup:
        # Other expert-parallel groups make theirs meanwhile, so only members meet.
        made = dist.new_group(
            members,
            timeout=timedelta(seconds=timeout_s),
            use_local_synchronization=True,
        )
        assert isinstance(made, dist.ProcessGroup)
        return made

    inside = subgroup(ranks[first : first + node_size])
    return Nodes(subgroup(ranks[place::node_size]), inside)


def dispatch_by_node_(model: nn.Module, nodes: Nodes) -> None:
    """Let every MoE layer dispatch by nodes.

    After the experts were sharded::

        shard_experts_(model, mesh.ep)  # or fully_shard_(model, mesh)
        dispatch_by_node_(model, make_nodes(mesh.ep, node_size=8))
    """
    for layer in moe_layers(model):
        layer.dispatcher = NodeLimited(nodes)


def nodes_of_a_token(router: Router, nodes: int) -> int:
    """To how many of `nodes` nodes the router can send one token at most.

    V3: 4, with its 8 groups on 8 nodes. Without groups it is the number of picks.
    """
    bound = min(nodes, router.top_k)
    if router.method != "greedy" and router.topk_group < router.n_group:
        total = len(router.weight)
        group, node = total // router.n_group, total // nodes
        widest = max(
            (first + group - 1) // node - first // node + 1
            for first in range(0, total, group)
        )
        bound = min(bound, router.topk_group * widest)
    return bound


class _Picks(NamedTuple):
    """Rows with what they are picked for; an expert of -1 is none of this place."""

    rows: Tensor  # (N, hidden)
    experts: Tensor  # (N, K) int64, numbered from the place's first expert
    weights: Tensor  # (N, K)


class NodeLimited:
    """Takes the place of `ExpertParallel`: same results, fewer rows between nodes.

    Rank r of the group that was cut into nodes holds experts r * n to
    (r + 1) * n - 1. Every rank has to call it for the same layer at the same time,
    even with no token. The router bounds the nodes (`nodes_of_a_token`), not this
    class: no pick is dropped.

    Attributes:
        across_rows: rows this rank sent to other nodes in the last call.
        inside_rows: rows it sent to other ranks of its node, handed-on ones too.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.across_rows = self.inside_rows = 0

    @property
    def sent_rows(self) -> int:
        """Rows this rank sent to others in the last call."""
        return self.across_rows + self.inside_rows

    def __call__(self, x: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """x: (T, hidden), this rank's tokens -> (T, hidden).

        Raises:
            R1Error: the router's experts are not the ranks' experts together.
        """
        (nodes, ranks), local = self.nodes.shape, experts.down_proj.shape[0]
        if local * ranks * nodes != routing.counts.numel():
            raise R1Error(
                f"experts: {local} here times {nodes * ranks} ranks are not the "
                f"router's {routing.counts.numel()}; call shard_experts_ on the model "
                "first"
            )

        def on_the_rank(picks: _Picks) -> Tensor:
            return _weighted_sum(picks, experts, local)

        def in_the_node(picks: _Picks) -> Tensor:
            done, self.inside_rows = _visit(
                picks, local, self.nodes.inside, on_the_rank
            )
            return done

        picks = _Picks(x, routing.experts, routing.weights.to(x.dtype))
        done, self.across_rows = _visit(
            picks, local * ranks, self.nodes.across, in_the_node
        )
        return done


def _visit(
    picks: _Picks,
    experts_each: int,
    group: dist.ProcessGroup,
    work: Callable[[_Picks], Tensor],
) -> tuple[Tensor, int]:
    """Send each row once to every place that has experts of it; sum what returns.

    Args:
        experts_each: experts of a place; place p of the group has the p-th lot.
        work: what a place does with its rows, (M, hidden) -> (M, hidden).

    Returns:
        (N, hidden) and the number of rows sent to other places.
    """
    places = dist.get_world_size(group)
    lot = picks.experts.div(experts_each, rounding_mode="floor")  # -1 stays -1
    needed = lot == torch.arange(places, device=lot.device).view(-1, 1, 1)
    place, row = needed.any(-1).nonzero(as_tuple=True)  # ordered by place
    counts = place.bincount(minlength=places).unsqueeze(1)
    # The host has to know the sizes before it can post the exchange.
    send = counts.flatten().tolist()
    receive = exchange_counts(counts, group).flatten().tolist()
    inside = picks.experts[row] % experts_each
    inside = torch.where(needed[place, row], inside, -1)
    out = (picks.rows[row], inside, picks.weights[row])
    there = _Picks(*(exchange(part, send, receive, group) for part in out))
    back = exchange(work(there), receive, send, group)
    # A token has few terms: on a GPU only their order may change from run to run,
    # and torch.use_deterministic_algorithms(True) forbids that.
    done = back.new_zeros(picks.rows.shape).index_add(0, row, back)
    return done, len(row) - send[dist.get_rank(group)]


def _weighted_sum(picks: _Picks, experts: Experts, local: int) -> Tensor:
    """The picks of this rank's experts: (N, hidden), zero for a row without any."""
    row, pick = (picks.experts >= 0).nonzero(as_tuple=True)
    expert = picks.experts[row, pick]
    order = expert.argsort(stable=True)
    row, pick = row[order], pick[order]
    done = experts(picks.rows[row], expert.bincount(minlength=local))
    done = done * picks.weights[row, pick].unsqueeze(-1)
    return done.new_zeros(picks.rows.shape).index_add(0, row, done)
