"""A guard that skips steps which would harm: not-a-number and loss spikes.

A step is judged against the recent good ones, by medians, which one outlier does not
move. How much they scatter is read off the differences between neighbours: a loss
that falls steadily does not scatter. The judgement is a function of the logged
numbers alone, so a resumed run replays them, and ranks that see the same numbers
decide alike: give it numbers of the whole step, not of one rank.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from r1lite.errors import R1Error
from r1lite.settings import Section

# Median difference of two numbers from a normal distribution, in its deviations.
NORMAL = 0.954
WATCHED = ("loss", "grad_norm")


class GuardConfig(Section):
    """A number is a spike `deviations` above the median of the last `first` steps.

    The deviation is that of the last `window` steps. `margin`: a spike of the loss
    is also that share above the median, for in a quiet window any number looks far
    away. `norm_margin`: the same for gradient norms, whose large values are mostly
    harmless batches of another kind, and clipped. With
    fewer than `first` steps only not-a-number is refused. `patience`: so many
    skips one after the other are no spike but a new level: it is accepted, or the
    run ends if it is not a number.
    """

    window: int = 50
    deviations: float = 8.0
    margin: float = 0.2
    norm_margin: float = 9.0
    first: int = 10
    patience: int = 5


class Guard:
    """Judges the steps of a stage, one after the other."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped = 0
        self._in_a_row = 0
        self._past = {k: deque[float](maxlen=config.window) for k in WATCHED}

    def judge(self, **values: float) -> str | None:
        """Why this step must be skipped, or None. Give "loss", "grad_norm" or both.

        Raises:
            R1Error: `patience` steps in a row were not numbers.
        """
        reason = self._reason(values)
        new_level = reason is not None and self._in_a_row + 1 >= self.config.patience
        if new_level and not all(map(math.isfinite, values.values())):
            raise R1Error(
                f"training: {self.config.patience} steps in a row gave no finite "
                f"number ({reason}); lower the learning rate or look at the data"
            )
        if new_level:
            for past in self._past.values():
                past.clear()
        elif reason is not None:
            self._in_a_row += 1
            self.skipped += 1
            return reason
        self._in_a_row = 0
        for name, value in values.items():
            if value:  # 0 is RL without a gradient, its answers all agreed: no scale
                self._past[name].append(value)
        return None

    def replay(self, rows: Iterable[Mapping[str, Any]], *names: str) -> None:
        """Judge the logged steps of a resumed stage again, by the same `names`."""
        for row in rows:
            self.judge(**{k: row[k] for k in names or WATCHED if k in row})

    def limit(self, name: str) -> float:
        """What is a spike of `name` now; infinity while too little is known."""
        past = list(self._past[name])
        if len(past) < max(2, self.config.first):
            return math.inf
        middle = median(past[-self.config.first :])
        spread = median(abs(a - b) for a, b in pairwise(past)) / NORMAL
        share = self.config.margin if name == "loss" else self.config.norm_margin
        return middle + max(self.config.deviations * spread, share * abs(middle))

    def _reason(self, values: Mapping[str, float]) -> str | None:
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
            if value > self.limit(name):
                return f"{name} {value:.4g} is above {self.limit(name):.4g}"
        return None
