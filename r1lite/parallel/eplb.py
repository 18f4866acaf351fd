"""Expert placement: busy experts get copies, and every GPU the same work.

Serving cannot move the bias, so V3 deploys redundant experts chosen from measured
loads (arXiv 2412.19437, section 3.4.1): 32 extra for 256 in prefill, without more
traffic between nodes. Greedy steps: pack groups of experts on nodes; in each give
every spare slot to the expert whose copies are busiest; then pack the copies on
GPUs. Packing is heaviest first, always where there is least work so far.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from r1lite.errors import R1Error


@dataclass(frozen=True)
class Placement:
    """Which expert lies in which slot; slots are numbered GPU by GPU.

    Attributes:
        experts: (gpus, slots) int64, the expert in each slot.
        copies: (E,) int64, how many slots hold each expert.
    """

    experts: Tensor
    copies: Tensor

    def gpu_load(self, load: Tensor) -> Tensor:
        """(gpus,) work of each GPU when copies of an expert share its tokens."""
        return (load.double() / self.copies)[self.experts].sum(-1)

    def imbalance(self, load: Tensor) -> float:
        """Largest GPU's work over the mean: 1 is perfect, and sets the pace."""
        work = self.gpu_load(load)
        return float(work.max() / work.mean().clamp(min=1e-12))


def copies_for(load: Tensor, slots: int) -> Tensor:
    """(E,) copies of each expert, at least 1, `slots` in all.

    Each spare slot goes to the expert with the most load per copy, which
    minimises the busiest copy.
    """
    copies = torch.ones(len(load), dtype=torch.int64)
    heap = [(-value, expert) for expert, value in enumerate(load.double().tolist())]
    heapq.heapify(heap)
    for _ in range(slots - len(load)):
        _, expert = heap[0]
        copies[expert] += 1
        heapq.heapreplace(heap, (-float(load[expert]) / int(copies[expert]), expert))
    return copies


def place_experts(
    load: Tensor,
    gpus: int,
    redundant: int = 0,
    nodes: int = 1,
    n_group: int | None = None,
) -> Placement:
    """Place experts and `redundant` copies on `gpus` GPUs of equal size.

    With several nodes whole groups of experts are packed on nodes first, then copies
    are made and packed within each node: a token that the router lets go to M groups
    still goes to M nodes at most, copies or not.

    Args:
        load: (E,) tokens counted per expert; a negative count is refused.
        nodes: machines; GPUs 0 to gpus / nodes - 1 are the first.
        n_group: the router's groups, by default one a node.

    Raises:
        R1Error: something does not divide among the GPUs, nodes or groups.
    """
    groups = nodes if n_group is None else n_group
    _check_sizes(load, gpus, redundant, nodes, groups)
    lots = torch.arange(len(load)).view(groups, -1)
    size = load.double().view(groups, -1).sum(-1)
    at_node = _pack(size.argsort(descending=True, stable=True), size, nodes)
    copies = torch.ones(len(load), dtype=torch.int64)
    placed = []
    for held in at_node:
        ids = lots[held].flatten().sort().values
        copies[ids] = copies_for(load[ids], (len(load) + redundant) // nodes)
        weight = load.double() / copies
        slots = ids.repeat_interleave(copies[ids])
        order = weight[slots].argsort(descending=True, stable=True)
        placed.append(_pack(slots[order], weight, gpus // nodes))
    return Placement(torch.cat(placed), copies)


def _check_sizes(
    load: Tensor, gpus: int, redundant: int, nodes: int, groups: int
) -> None:
    if gpus < 1 or nodes < 1 or gpus % nodes:
        raise R1Error(
            f"nodes: {gpus} GPUs do not fill {nodes} evenly; choose a divisor"
        )
    if groups < 1 or groups % nodes or len(load) % groups:
        raise R1Error(
            f"n_group: {len(load)} experts in {groups} groups do not fill {nodes} "
            "nodes evenly; choose a multiple of the nodes, or nodes=1"
        )
    if (len(load) + redundant) % gpus or redundant < 0:
        raise R1Error(
            f"redundant: {len(load)} experts and {redundant} copies do not fill "
            f"{gpus} GPUs evenly; choose redundant so that their sum is a multiple"
        )
    if bool((load < 0).any()):
        raise R1Error("load: holds a negative count; give tokens per expert")


def in_order(n_experts: int, gpus: int) -> Placement:
    """The placement of training: expert i on GPU i // (E / gpus)."""
    ids = torch.arange(n_experts).view(gpus, -1)
    return Placement(ids, torch.ones(n_experts, dtype=torch.int64))


def _pack(experts: Tensor, weight: Tensor, gpus: int) -> Tensor:
    """Heaviest copy first, to the least busy GPU with room and without a twin.

    Two copies of an expert on one GPU would share nothing; only where no other
    GPU has room does a twin go there.
    """
    room = len(experts) // gpus
    held: list[list[int]] = [[] for _ in range(gpus)]
    work = [0.0] * gpus
    for expert in experts.tolist():
        open_ = [g for g in range(gpus) if len(held[g]) < room]
        best = min(open_, key=lambda g: (expert in held[g], work[g], g))
        held[best].append(expert)
        work[best] += float(weight[expert])
    return torch.tensor(held)
