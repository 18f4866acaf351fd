"""Expert placement: busy experts get copies, and every GPU the same work.

Serving cannot move the bias, so V3 deploys redundant experts chosen from measured
loads (arXiv 2412.19437, section 3.4.1): 32 extra for 256 in prefill. Two greedy
steps: give each spare slot to the expert whose copies are busiest, then pack the
copies on GPUs, heaviest first, always where there is least work so far.
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


def place_experts(load: Tensor, gpus: int, redundant: int = 0) -> Placement:
    """Place experts and `redundant` copies on `gpus` GPUs of equal size.

    Args:
        load: (E,) tokens counted per expert; a negative count is refused.

    Raises:
        R1Error: the slots do not divide among the GPUs.
    """
    slots = len(load) + redundant
    if slots % gpus or redundant < 0:
        raise R1Error(
            f"redundant: {len(load)} experts and {redundant} copies do not fill "
            f"{gpus} GPUs evenly; choose redundant so that their sum is a multiple"
        )
    if bool((load < 0).any()):
        raise R1Error("load: holds a negative count; give tokens per expert")
    copies = copies_for(load, slots)
    weight = load.double() / copies
    expert_of = torch.arange(len(load)).repeat_interleave(copies)
    order = weight[expert_of].argsort(descending=True, stable=True)
    return Placement(_pack(expert_of[order], weight, gpus), copies)


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
