"""What a run may claim: Wilson intervals and the rule about the controls.

Reinforcement learning that raises the score of a model's *default* answer has
not taught it anything if a control gets the same score without RL. The words
of the report come from here, out of the numbers, so that no run can claim more
than it measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

Outcome = Literal[
    "no gain", "elicitation", "not separated", "incomplete", "beyond every control"
]
CONTROL_IDS = (1, 2, 3, 4, 5)


def wilson(accuracy: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % for z = 1.96.

    Args:
        accuracy: measured share in [0, 1]; may be a mean over samples.
        n: number of *unique* problems (not samples), >= 1.

    Returns:
        (low, high) with 0 <= low <= accuracy <= high <= 1.
    """
    if n < 1 or not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"wilson needs n >= 1 and a share, got {accuracy} of {n}")
    scale = 1.0 + z * z / n
    centre = accuracy + z * z / (2 * n)
    spread = z * sqrt(accuracy * (1.0 - accuracy) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At 0 and 1 rounding may push a bound past the share by 1e-17.
    return max(0.0, min(low, accuracy)), min(1.0, max(high, accuracy))


@dataclass(frozen=True)
class Result:
    """One accuracy with its interval, and the name it goes by in a sentence."""

    name: str
    accuracy: float
    ci_low: float
    ci_high: float
    control: int | None = None

    def __str__(self) -> str:
        low, high = 100 * self.ci_low, 100 * self.ci_high
        return f"{100 * self.accuracy:.1f} % [{low:.1f}, {high:.1f}]"


def judge(
    trained: Result, controls: Sequence[Result], before: Result | None = None
) -> tuple[Outcome, str]:
    """The one verdict on a trained policy, and the sentence that states it.

    - "no gain": the trained policy's lower bound does not exceed the starting
      policy's upper bound.
    - "elicitation": some control's accuracy reaches the trained policy's
      interval (or lies above it).
    - "not separated": none reaches it, but some control's interval overlaps.
    - "incomplete": clear of every control measured, but one of the five was
      not measured.
    - "beyond every control": lower bound above the upper bound of all five.
    """
    if before is not None and trained.ci_low <= before.ci_high:
        return "no gain", _no_gain(trained, before)
    reached = [c for c in controls if c.accuracy >= trained.ci_low]
    if reached:
        return "elicitation", _elicitation(trained, reached)
    overlap = [c for c in controls if c.ci_high >= trained.ci_low]
    if overlap:
        return "not separated", _not_separated(trained, overlap)
    missing = [i for i in CONTROL_IDS if i not in {c.control for c in controls}]
    if missing:
        return "incomplete", _incomplete(trained, controls, missing)
    best = max(controls, key=lambda c: c.ci_high)
    return "beyond every control", (
        f"Beyond every control: RL's {trained} lies clear of all five; the nearest "
        f"is control {best.control} ({best.name}) with {best}."
    )


def _no_gain(trained: Result, before: Result) -> str:
    if trained.ci_high < before.ci_low:
        return f"No gain: RL made the policy worse, from {before} to {trained}."
    return (
        f"No gain: RL's {trained} is not clear of the starting policy's {before}, "
        "so nothing can be said for RL here."
    )


def _elicitation(trained: Result, reached: Sequence[Result]) -> str:
    best = max(reached, key=lambda c: c.accuracy)
    ids = sorted({c.control for c in reached if c.control is not None})
    if len(ids) > 1:
        names = ", ".join(map(str, ids[:-1])) + f" and {ids[-1]}"
        which = f"controls {names} reach it without RL, best control {best.control}"
    else:
        which = f"control {best.control} reaches it without RL"
    return (
        f"Elicitation: RL's default answer scores {trained}, but {which} "
        f"({best.name}) with {best}. RL changed what the model does by default, "
        "not what it is able to do."
    )


def _not_separated(trained: Result, overlap: Sequence[Result]) -> str:
    best = max(overlap, key=lambda c: c.ci_high)
    return (
        f"Not separated: no control reaches RL's {trained}, but the interval of "
        f"control {best.control} ({best.name}), {best}, overlaps it. More test "
        "problems are needed before anything beyond elicitation can be claimed."
    )


def _incomplete(
    trained: Result, controls: Sequence[Result], missing: Sequence[int]
) -> str:
    names = ", ".join(map(str, missing))
    if not controls:
        return (
            f"Incomplete: RL's default answer scores {trained}, but no control was "
            "run, so nothing beyond elicitation can be claimed."
        )
    return (
        f"Incomplete: RL's {trained} lies clear of every control measured, but "
        f"control {names} was not run, so nothing beyond elicitation can be claimed."
    )
