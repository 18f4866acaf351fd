"""Answers that no model made, for tests of what is counted over answers."""

from __future__ import annotations

from r1lite.data.chat import Response
from r1lite.tasks import Problem
from r1lite.tasks.reward import Score
from r1lite.training.rollout import Rollout


def answered(level: int, right: bool, length: int, think: bool = True) -> Rollout:
    """An answer of `length` tokens to a made-up problem of "chain"."""
    problem = Problem("chain", level, "q", "1", (), f"{level} {right} {length}")
    parsed = Response("r" if think else None, "1", True, think)
    score = Score(float(right), 1.0, float(right))
    return Rollout(problem, [1], [2] * length, [0.0] * length, parsed, score)
