"""The parts of report.json that say how good the policies are."""

# ruff: noqa: RUF012 (pydantic copies a mutable default for each object)

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import Field, model_validator

from r1lite.report.parts import Amount, Count, Measured, Part, Share, Split
from r1lite.report.verdict import Outcome, wilson


def _bound(side: int) -> Any:
    # `data` lacks a field that failed its own check; that error is reported.
    def fill(data: dict[str, Any]) -> float:
        return wilson(data.get("accuracy", 0.0), data.get("n", 1))[side]

    return fill


class Evaluation(Part):
    """One policy on the unique problems of one family and level.

    Leave ci_low and ci_high out: they are Wilson's 95 % interval over `n`.
    `pass1` and `pass16` are of samples at temperature 1, on fewer problems: the
    mean over 16 samples, and the chance that one of them is right.
    """

    policy: str
    decode: str = "greedy"
    forced_think: bool = False
    split: Split = "test"
    family: str
    level: int | None = None
    n: int = Field(ge=1)
    accuracy: Share
    ci_low: Share = Field(default_factory=_bound(0))
    ci_high: Share = Field(default_factory=_bound(1))
    pass1: Share | None = None
    pass16: Share | None = None
    format: Share | None = None
    mean_length: Measured = None
    think_share: Share | None = None

    @model_validator(mode="after")
    def _interval_holds_accuracy(self) -> Evaluation:
        if not self.ci_low <= self.accuracy <= self.ci_high:
            raise ValueError("accuracy lies outside [ci_low, ci_high]")
        return self

    @property
    def way(self) -> tuple[str, str, bool]:
        """(policy, decode, forced_think): how the answers were made."""
        return self.policy, self.decode, self.forced_think


class Control(Part):
    """One of the five ways to get RL's score without RL (two rows may share an
    id, e.g. control 2 for base and for SFT). Its numbers are the evaluations
    of (policy, decode, forced_think) on the headline's split."""

    id: int = Field(ge=1, le=5)
    description: str
    policy: str
    decode: str = "greedy"
    forced_think: bool = False
    budget_tokens: Count | None = None
    budget_seconds: Amount | None = None
    chosen_on: Split | None = "validation"

    @property
    def way(self) -> tuple[str, str, bool]:
        return self.policy, self.decode, self.forced_think


class Rung(Part):
    """A policy of section `[r1]`: a stage of R1's recipe, PPO or a student. Its
    numbers are its evaluations, decoded as the headline is, on the same split."""

    policy: str
    description: str
    budget_tokens: Count | None = None
    budget_seconds: Amount | None = None


class Headline(Part):
    """Which evaluations are the before and the after of the run."""

    before: str = "sft"
    after: str = "grpo"
    decode: str = "greedy"
    split: Split = "test"
    budget_tokens: Count | None = None
    budget_seconds: Amount | None = None


class Goal(Part):
    """A number the recipe promised, and whether the run kept it.

    A value in "%" is a share in [0, 1]; the others are as they stand.
    """

    name: str
    value: Measured
    at_least: float | None = None
    at_most: float | None = None
    unit: Literal["%", "x", "s", ""] = "%"

    @property
    def met(self) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return self.value is not None and low <= self.value <= high

    @property
    def shown(self) -> str:
        """The measured value in its unit."""
        return self._in_unit(self.value)

    @property
    def promise(self) -> str:
        """The bounds in their unit."""
        bounds = []
        if self.at_least is not None:
            bounds.append(f"at least {self._in_unit(self.at_least)}")
        if self.at_most is not None:
            bounds.append(f"at most {self._in_unit(self.at_most)}")
        return ", ".join(bounds)

    def _in_unit(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self.unit == "%":
            return f"{100 * value:.4g} %"
        return (
            f"{value:.4g}{self.unit if self.unit == 'x' else ' ' + self.unit}".strip()
        )


class Attempt(Part):
    """A task or format that was tried; the failed ones are listed too."""

    name: str
    outcome: str
    kept: bool = False


class Reply(Part):
    """`text` as decoded with its control tags, `length` in tokens."""

    text: str
    correct: bool
    length: Count | None = None


class Sample(Part):
    """One problem answered by several policies, policy -> reply."""

    question: str
    reference: str
    family: str
    level: int | None = None
    replies: dict[str, Reply]


class SeedResult(Part):
    """Headline numbers of one whole run with its own base."""

    seed: int
    before: Share
    after: Share
    before_length: Measured = None
    after_length: Measured = None
    format: Share | None = None
    controls: dict[int, Share] = {}
    rl_seconds: Amount | None = None


class Verdict(Part):
    """Written by `Report` from its numbers, never by hand. family "all" pools."""

    family: str
    outcome: Outcome
    text: str


def pool(rows: Sequence[Evaluation], family: str = "all") -> Evaluation:
    """One evaluation over the problems of all rows, weighted by their number."""
    n = sum(e.n for e in rows)

    def mean(values: Iterable[float | None]) -> float | None:
        found = [(v, e.n) for v, e in zip(values, rows, strict=True) if v is not None]
        if len(found) < len(rows):
            return None
        return sum(v * k for v, k in found) / n

    first, accuracy = rows[0], sum(e.accuracy * e.n for e in rows) / n
    return Evaluation(
        policy=first.policy,
        decode=first.decode,
        forced_think=first.forced_think,
        split=first.split,
        family=family,
        n=n,
        accuracy=min(1.0, accuracy),
        pass1=mean(e.pass1 for e in rows),
        pass16=mean(e.pass16 for e in rows),
        format=mean(e.format for e in rows),
        mean_length=mean(e.mean_length for e in rows),
        think_share=mean(e.think_share for e in rows),
    )


def median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, smallest, largest) over seeds."""
    return median(values), min(values), max(values)
