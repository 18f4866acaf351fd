"""What every rank of a pipeline does when, from torch's own schedules.

The time is simulated: a task starts as soon as its rank is free and what it needs
is there. Moving data takes no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from r1lite.errors import R1Error
from r1lite.parallel.cut import Schedule, stages_of

# A backward pass is a matrix product for the inputs and one for the weights.
UNITS = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


@dataclass(frozen=True)
class Task:
    """One pass of a micro-batch through a stage.

    Attributes:
        kind: F forward, B backward, or B in two halves: I of the inputs, which the
            stage before waits for, and W of the weights, which can wait.
        start, stop: in forward passes through all layers of a rank.
    """

    rank: int
    stage: int
    micro_batch: int
    kind: str
    start: float
    stop: float


def timetable(schedule: Schedule, pp: int, micro_batches: int) -> list[Task]:
    """The tasks of one step on `pp` ranks, rank by rank in order of time.

    Raises:
        R1Error: fewer micro-batches than stages, or no such schedule.
    """
    per_rank = len(stages_of(schedule, pp, 0))
    if micro_batches < pp * per_rank:
        raise R1Error(
            f"micro_batches: {micro_batches} are fewer than the {pp * per_rank} stages "
            f"of {schedule}; give at least {pp * per_rank}"
        )
    name = "1F1B" if schedule == "1f1b" else "DualPipeV"
    orders = [list(_tasks(ops)) for ops in get_schedule_ops(name, pp, micro_batches)]
    last = pp * per_rank - 1
    done: dict[tuple[int, str, int], float] = {}
    free, at = [0.0] * pp, [0] * pp
    found: list[list[Task]] = [[] for _ in orders]
    while any(i < len(order) for i, order in zip(at, orders, strict=True)):
        before = list(at)
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                stage, kind, batch = order[at[rank]]
                need = _need(stage, kind, batch, last)
                if need is not None and need not in done:
                    break
                start = max(free[rank], done.get(need, 0.0) if need else 0.0)
                free[rank] = start + UNITS[kind] / per_rank
                # What waits for a backward pass waits for its first half only.
                done[stage, "B" if kind == "I" else kind, batch] = free[rank]
                found[rank].append(Task(rank, stage, batch, kind, start, free[rank]))
                at[rank] += 1
        assert at != before, "the schedule stands still"
    return [task for tasks in found for task in tasks]


def idle_share(tasks: list[Task]) -> float:
    """The bubble: the part of all ranks' time until the last stops that is idle."""
    ranks = 1 + max(t.rank for t in tasks)
    busy = sum(t.stop - t.start for t in tasks)
    return 1 - busy / (ranks * max(t.stop for t in tasks))


def _tasks(operations: list[Any]) -> Iterator[tuple[int, str, int]]:
    """(stage, kind, micro-batch) of torch's actions.

    Micro-batches are numbered anew, since a stage takes them in order: torch 2.13
    draws the last rank of 1F1B with numbers one too large (it runs it rightly).
    """
    seen: dict[tuple[int, str], int] = {}
    for action in operations:
        for part in (action and action.sub_actions) or (action,):
            kind = part.computation_type.value if part else ""
            if kind in UNITS:
                key = part.stage_index, "B" if kind == "I" else kind
                batch = seen[key] = seen.get(key, -1) + 1
                if kind == "W":
                    batch = part.microbatch_index
                yield part.stage_index, kind, batch


def _need(stage: int, kind: str, batch: int, last: int) -> tuple[int, str, int] | None:
    """What has to be done before: the same micro-batch one stage nearer its start."""
    if kind == "F":
        return (stage - 1, "F", batch) if stage else None
    if kind == "W":
        return stage, "B", batch
    return (stage, "F", batch) if stage == last else (stage + 1, "B", batch)
