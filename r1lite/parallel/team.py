"""The ranks of a run as the training stages see them. One process is a team of one.

A stage is written once: every rank plans the whole step, takes its own rows, and
weighs them by the counts of the whole step. What lies between the backward pass
and the optimizer, and what all ranks must see alike, is asked of the team.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.parallel.fsdp import fully_shard_
from r1lite.parallel.hierarchy import dispatch_by_node_, make_nodes
from r1lite.parallel.mesh import Mesh, finish_backward_
from r1lite.parallel.shard import gather_experts, shard_experts_
from r1lite.parallel.watch import Watch

T = TypeVar("T")


class Team:
    """All ranks of a run, or this one process.

    Attributes:
        device: where this rank's tensors live.
        mesh: None for one process.
        rank: 0 writes the log, the reports and the final model.
        ranks: how many read a part of every batch.
        staged: the same ranks as a pipeline, for the stage that has use for one.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        mesh: Mesh | None = None,
        fsdp: bool = False,
        node_size: int = 0,
        staged: Team | None = None,
    ) -> None:
        self.device, self.mesh, self.fsdp = torch.device(device), mesh, fsdp
        self.staged = staged
        self._nodes = make_nodes(mesh.ep, node_size) if mesh and node_size else None
        self.rank = dist.get_rank() if mesh else 0
        self.ranks = dist.get_world_size() if mesh else 1
        self._watch = Watch() if mesh else None
        # Small objects travel through the CPU, whatever trains.
        self._talk = dist.new_group(backend="gloo") if mesh else None

    @property
    def first(self) -> bool:
        """Is this the rank that writes?"""
        return self.rank == 0

    def spread_(self, model: R1Model) -> None:
        """Bring a whole model to the device and cut it up over the ranks.

        Call it before the optimizer is built: parameters are replaced.
        """
        model.to(self.device)
        if self.mesh is None:
            return
        if self.fsdp:
            fully_shard_(model, self.mesh)
        else:
            shard_experts_(model, self.mesh.ep)
        if self._nodes is not None:
            dispatch_by_node_(model, self._nodes)
        vars(model)["spread_over"] = self.mesh

    def whole(self, model: R1Model) -> R1Model:
        """A model with every weight on every rank: to save, to measure, to sample.

        Of a spread model it is a copy. A rank then needs room for all weights,
        which a system that trains hundreds of billions solves with an engine of
        its own for sampling.
        """
        mesh: Mesh | None = vars(model).get("spread_over")
        if mesh is None:
            return model
        state = gather_experts(model, mesh.ep, mesh.pp)
        with torch.random.fork_rng():  # initial weights must not cost random numbers
            copy = type(model)(model.config)
        copy.load_state_dict(state)
        return copy.to(self.device).eval()

    def finish_backward_(self, model: nn.Module, clip: float) -> float:
        """Gradients and loads of the whole step, clipped. Returns the norm before."""
        if self.mesh is not None:
            return float(finish_backward_(model, self.mesh, clip))
        return float(nn.utils.clip_grad_norm_(model.parameters(), clip))

    def slices(self, rows: int, micro_rows: int = 0) -> list[slice]:
        """This rank's part of `rows`, as micro-batches of about `micro_rows`.

        Ranks take neighbouring rows, their shares differ by one at most. Every
        rank has as many micro-batches, none of them empty, because each has to
        take part in every exchange.

        Args:
            micro_rows: 0 for one micro-batch.

        Raises:
            R1Error: fewer rows than ranks.
        """
        if rows < self.ranks:
            raise R1Error(
                f"batch: {rows} rows are too few for {self.ranks} ranks; enlarge the "
                "batch or start fewer processes"
            )
        least, most = rows // self.ranks, -(-rows // self.ranks)
        count = min(least, -(-most // micro_rows)) if micro_rows else 1
        start, stop = _bounds(rows, self.ranks)[self.rank]
        return [slice(start + a, start + b) for a, b in _bounds(stop - start, count)]

    def gather(self, mine: list[Any]) -> list[Any]:
        """The ranks' lists one after the other, alike on every rank."""
        if self.mesh is None:
            return mine
        # Pickled, but only between the processes of this very run.
        every: list[Any] = [None] * self.ranks
        dist.all_gather_object(every, mine, group=self._talk)
        return [x for part in every for x in part]

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Added up over the ranks, name by name; all ranks have the same names."""
        if self.mesh is None:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self._talk)
        return dict(zip(values, total.tolist(), strict=True))

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on every rank; the others do not call it.

        Raises:
            R1Error: rank 0 raised it; every rank does.
        """
        if self.mesh is None:
            return make()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told = [make(), None]
            except R1Error as e:
                told = [None, str(e)]
        dist.broadcast_object_list(told, 0, group=self._talk)
        if told[1] is not None:
            raise R1Error(told[1])
        value: T = told[0]
        return value

    def watched(self, operation: str) -> AbstractContextManager[None]:
        """Turns a hang inside into an error that names operation and ranks."""
        return nullcontext() if self._watch is None else self._watch(operation)

    def lap(self) -> float:
        """Seconds of this rank's own work since the last lap; see `Watch.lap`."""
        return 0.0 if self._watch is None else self._watch.lap()


def _bounds(count: int, parts: int) -> list[tuple[int, int]]:
    """`count` things in `parts` runs whose lengths differ by one at most."""
    ends = [count * i // parts for i in range(parts + 1)]
    return list(pairwise(ends))
