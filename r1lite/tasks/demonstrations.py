"""The demonstrations of supervised fine-tuning, mixed on purpose.

Most answer at once, some reason first, and a few of those contain a wrong step and
follow it. The mix decides what the model does by default, and so how wide the gap
is that reinforcement learning can close: report it beside every result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from pydantic import Field

from r1lite.settings import Section
from r1lite.tasks.families import corrupt
from r1lite.tasks.problem import mix, text_hash
from r1lite.tasks.stream import Stream

_PROBLEMS = text_hash("demonstrations: problems")
_CHOICES = text_hash("demonstrations: choices")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One dialogue turn to imitate; `reasoning` is None when it answers at once."""

    question: str
    reasoning: str | None
    answer: str
    name: str  # "family/level"
    wrong: bool  # one step, and so the answer, is wrong


class DemoConfig(Section):
    """The mix.

    Attributes:
        answer_only: share that gives the (right) answer with no reasoning; problems
            of reasoning-gym, which come without steps, always do.
        wrong_steps: share of the reasoned ones with one wrong step carried on.
    """

    answer_only: float = Field(default=0.7, ge=0, le=1)
    wrong_steps: float = Field(default=0.1, ge=0, le=1)


class Demonstrations:
    """Endless demonstrations; the index alone decides which, so resuming is exact."""

    def __init__(
        self, config: DemoConfig, shares: Mapping[str, float], seed: int
    ) -> None:
        self.config = config
        self._seed = mix(_CHOICES, seed)
        self._stream = Stream(shares, mix(_PROBLEMS, seed))

    def at(self, index: int) -> Demonstration:
        """Demonstration number `index` (0, 1, 2, ...), from the train split."""
        problem = self._stream.problem_at(index)
        rng = Random(mix(self._seed, index))
        reasons = rng.random() >= self.config.answer_only and bool(problem.steps)
        wrong = rng.random() < self.config.wrong_steps and reasons
        reasoning, answer = problem.reasoning if reasons else None, problem.answer
        if wrong:
            reasoning, answer = corrupt(problem, rng)
        name = f"{problem.family}/{problem.level}"
        return Demonstration(problem.question, reasoning, answer, name, wrong)


def demonstration_at(
    index: int, seed: int, config: DemoConfig, shares: Mapping[str, float]
) -> Demonstration:
    """One demonstration of `shares` ("family/level" -> weight) by its index."""
    return Demonstrations(config, shares, seed).at(index)


def measured(demonstrations: Iterable[Demonstration]) -> dict[str, float]:
    """The mix as drawn: shares of kinds and of "family/level", for the report.

    `wrong_steps` is a share of the reasoned ones, as in the configuration;
    `reasoning_characters` is the mean over the reasoned ones.
    """
    drawn = list(demonstrations)
    reasoned = [len(demo.reasoning) for demo in drawn if demo.reasoning is not None]
    total, thinking = max(len(drawn), 1), max(len(reasoned), 1)
    result = {
        "count": float(len(drawn)),
        "answer_only": (len(drawn) - len(reasoned)) / total,
        "wrong_steps": sum(demo.wrong for demo in drawn) / thinking,
        "reasoning_characters": sum(reasoned) / thinking,
    }
    names = Counter(demo.name for demo in drawn)
    return result | {name: names[name] / total for name in sorted(names)}
