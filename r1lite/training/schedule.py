"""Schedules that count tokens: phases of the learning rate, and a growing batch.

DeepSeek-V3 (arXiv 2412.19437, section 4.2) states both in tokens, because a step
does not always hold as many of them. Here they are shares of a stage's tokens, so
that one schedule serves a run of any length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from r1lite.errors import R1Error
from r1lite.settings import Section


class Phase(Section):
    """`share` of the tokens; the rate goes from `start` to `end` times the peak.

    Where the two differ it follows half a cosine wave.
    """

    share: float
    start: float = 1.0
    end: float = 1.0


# Of 14.8 T tokens: 10 T at 2.2e-4, 4.3 T down to 2.2e-5, 333 B there, 167 B at
# 7.3e-6. The warm-up before it counts steps, 2,000 of them.
V3_PHASES = (
    Phase(share=10 / 14.8),
    Phase(share=4.3 / 14.8, end=0.1),
    Phase(share=0.333 / 14.8, start=0.1, end=0.1),
    Phase(share=0.167 / 14.8, start=0.0332, end=0.0332),
)


def phase_scale(phases: Sequence[Phase], done: float) -> float:
    """Factor on the learning rate when the share `done` of the tokens is read.

    After the last phase its end stays.

    Raises:
        R1Error: there are no phases.
    """
    if not phases:
        raise R1Error("phases: there are none; give at least one")
    for phase in phases:
        if done < phase.share:
            wave = 0.5 * (1 + math.cos(math.pi * done / phase.share))
            return phase.end + (phase.start - phase.end) * wave
        done -= phase.share
    return phases[-1].end


class BatchRamp(Section):
    """The batch grows from `start` times its size over `share` of the tokens.

    V3: from 3,072 to 15,360 sequences over the first 469 B of 14.8 T tokens. It
    grows by `multiple` rows at a time, for ranks and micro-batches that must share.
    """

    start: float = 1.0
    share: float = 0.0
    multiple: int = 1


V3_RAMP = BatchRamp(start=0.2, share=0.469 / 14.8)


def batch_plan(rows: int, batch_size: int, ramp: BatchRamp) -> list[int]:
    """The rows of each step, together `rows`, at most `batch_size` each.

    A batch is as large as the ramp says at its first row. It grows in a straight
    line over the rows read, and the last batch takes what is left.

    Raises:
        R1Error: a share or a start that is none, or not a multiple.
    """
    if not (0 < ramp.start <= 1 and 0 <= ramp.share <= 1):
        raise R1Error(
            f"ramp: start {ramp.start}, share {ramp.share}; give a start above 0 and "
            "at most 1, and a share from 0 to 1"
        )
    unit = ramp.multiple
    if unit < 1 or batch_size % unit:
        raise R1Error(
            f"ramp.multiple: {unit} does not divide a batch of {batch_size}; choose "
            "one of its divisors"
        )
    plan: list[int] = []
    read = 0
    while read < rows:
        grown = min(1.0, read / (rows * ramp.share)) if ramp.share else 1.0
        size = batch_size * (ramp.start + (1 - ramp.start) * grown)
        plan.append(min(max(1, round(size / unit)) * unit, rows - read))
        read += plan[-1]
    return plan


class TokenPlan:
    """What each step of a stage reads, and how fast it learns there.

    A function of the recipe alone: every rank, every pipeline stage and every run
    that goes on after a kill plans the same batches.

    Args:
        rows: of the whole stage; all hold equally many tokens.
        phases: of the learning rate; their shares sum to 1.
        warmup: steps over which the rate rises from 0 besides.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        ramp: BatchRamp,
        phases: Sequence[Phase],
        warmup: int = 0,
    ) -> None:
        total = sum(p.share for p in phases)
        if abs(total - 1) > 1e-6:
            raise R1Error(f"phases: the shares sum to {total:.6g}; make them sum to 1")
        self.sizes = batch_plan(rows, batch_size, ramp)
        self._before = [0, *accumulate(self.sizes)]
        self._phases, self._warmup = phases, warmup

    @property
    def steps(self) -> int:
        """How many steps read all the rows."""
        return len(self.sizes)

    def rows(self, step: int) -> tuple[int, int]:
        """(the first row, how many) of `step`, from 0."""
        return self._before[step], self.sizes[step]

    def check_shares(self, ranks: int, unit: int = 1) -> None:
        """Refuse now what step a thousand would: a batch that cannot be shared out.

        Raises:
            R1Error: one has fewer rows than ranks, or is no multiple of `unit`.
        """
        for size in self.sizes:
            if size < ranks or size % unit:
                raise R1Error(
                    f"batch: {size} rows do not divide among {ranks} ranks, {unit} at "
                    f"once; set batch_size and ramp.multiple to multiples of "
                    f"{max(ranks, unit)}"
                )

    def scale(self, step: int) -> float:
        """Factor on the learning rate at `step`: by rows read, not by steps."""
        warm = min(1.0, (step + 1) / self._warmup) if self._warmup else 1.0
        return warm * phase_scale(self._phases, self._before[step] / self._before[-1])
