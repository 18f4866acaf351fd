"""When ranks wait for each other: a hang gets a name, and so does a slow rank.

A collective needs every rank. If one has died, sits in another branch or in a
debugger, the others wait: for 30 minutes by torch's default on gloo, and then
they report a closed socket. Here each rank leaves a note of where it is with the
store that brought the group together, which still answers when the group does not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from r1lite.errors import R1Error
from r1lite.parallel.exchange import seconds_exchanging

# What gloo and NCCL say when a partner does not answer or is gone.
_TIMED_OUT = re.compile(r"timed? ?out", re.I)
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe", re.I)


class Watch:
    """Names the operation and the missing ranks when a group stands still::

        watch = Watch()
        with watch(f"step {step}: gradients"):
            norm = finish_backward_(model, mesh)

    How long a group waits is said where it is made: `init_process_group(timeout=)`
    and `make_mesh(timeout_s=)`. On NCCL set TORCH_NCCL_BLOCKING_WAIT=1, or its own
    watchdog ends the process first. A block sends the store two messages and takes
    0.03 ms here: use it a few times a step, not a thousand.

    Attributes:
        waited_s: seconds in watched blocks since `Watch()` or the last `lap`,
            without the exchanges inside them.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._store = dist.PrefixStore("r1lite-watch", _get_default_store())
        self._count = 0
        self._began, self._exchanged = time.perf_counter(), seconds_exchanging()
        self._note("at the start")

    @contextmanager
    def __call__(self, operation: str) -> Iterator[None]:
        """Watch the collectives inside. Ranks number their blocks alike.

        Raises:
            R1Error: in place of the time-out or the closed connection.
        """
        self._count += 1
        self._note(f"in {operation!r}")
        began, exchanged = time.perf_counter(), seconds_exchanging()
        try:
            yield
        except RuntimeError as e:
            how = "lost a rank"
            if _TIMED_OUT.search(str(e)):
                how = f"got no answer for {time.perf_counter() - began:.0f} s"
            elif not _LOST.search(str(e)):
                raise
            raise R1Error(
                f"rank {self._rank}: {operation!r} {how}; {self._missing()}; see what "
                "happened there, then start again from the last checkpoint"
            ) from e
        self.waited_s += time.perf_counter() - began
        self.waited_s -= seconds_exchanging() - exchanged
        self._note(f"after {operation!r}")

    def lap(self) -> float:
        """Seconds of this rank's own work since the last lap, waiting left out.

        Waiting is what watched blocks take, and the exchanges of expert parallelism
        on a CPU. FSDP and pipelines wait for others inside of what counts as work.
        """
        now, exchanged = time.perf_counter(), seconds_exchanging()
        own = now - self._began - self.waited_s - (exchanged - self._exchanged)
        self._began, self._exchanged, self.waited_s = now, exchanged, 0.0
        return own

    def _note(self, where: str) -> None:
        self._store.set(str(self._rank), f"{self._count} {where}")

    def _missing(self) -> str:
        """Which ranks are not where this one is."""
        try:
            notes = [
                self._store.get(str(r)).decode() if self._store.check([str(r)]) else "0"
                for r in range(self._ranks)
            ]
        except RuntimeError:  # it lived in a process that is gone
            return "the store is gone, too: rank 0 or torchrun has ended"
        apart = [
            f"rank {rank} is {note.partition(' ')[2] or 'not yet there'}"
            for rank, note in enumerate(notes)
            if note != notes[self._rank]
        ]
        return (
            ", ".join(apart)
            or "every rank is in it: one died there, or the network did"
        )


def slow_ranks(
    own_s: float, group: dist.ProcessGroup, factor: float = 1.5
) -> dict[int, float]:
    """Ranks whose own work takes over `factor` times the group's median.

    Args:
        own_s: this rank's own work in seconds, waiting left out (`Watch.lap`). The
            time of a whole step would not do: it is the slowest rank's everywhere.

    Returns:
        Rank in the group to its time over the median, alike on every rank.
    """
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.tensor([own_s], dtype=torch.float64, device=device)
    times = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(times, mine, group=group)
    every = torch.cat(times)
    # torch's median is the lower of two: of two ranks the faster one's.
    ratio = every / every.median().clamp(min=1e-9)
    return {r: float(x) for r, x in enumerate(ratio) if float(x) > factor}
