"""reasoning-gym's generators as families called `gym_<dataset>`.

Three of its traps are kept out. Its scorers pay for substrings ("10" for "1"
earns one half), so answers are compared here, exactly. Its item i of seed s is item
i-1 of seed s+1, so a split by seed leaks: the question's hash decides. Its prompts
are long: most are rewritten from the metadata.

`products` and `countdown` are left out: R1-lite's own families of that name hold
problems out, and a second source of the same problems would let them in again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import ModuleType
from typing import Any

from r1lite.errors import R1Error
from r1lite.tasks.problem import PATIENCE, Problem, split_of_text

PREFIX = "gym_"
# Dataset -> short question from the item's metadata; None keeps its own.
DATASETS: dict[str, str | None] = {
    "basic_arithmetic": "Calculate {expression}",
    "chain_sum": "Add up {expression}",
    "fraction_simplification": None,
    "gcd": "Greatest common divisor of {numbers}",
    "lcm": "Least common multiple of {numbers}",
    "leg_counting": None,
    "letter_counting": None,
    "number_filtering": None,
    "number_sequence": "Continue {question}",
    "simple_equations": None,
    "spell_backward": "Spell backward {word}",
}
MAX_QUESTION = 240  # characters; longer items are drawn again


@dataclass(frozen=True)
class GymFamily:
    """One dataset of reasoning-gym; no steps, so nothing to corrupt."""

    dataset: str
    source: Any = field(repr=False)
    levels: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        """`gym_gcd` and so on."""
        return PREFIX + self.dataset

    def make(self, rng: Random, level: int) -> Problem:
        """A random problem of any split."""
        while True:
            item = self.source[rng.getrandbits(48)]
            question = _question(self.dataset, item)
            if len(question) <= MAX_QUESTION:
                answer = str(item["answer"]).strip()
                key = f"{self.name} {question}"
                return Problem(self.name, level, question, answer, (), key)

    def draw(self, rng: Random, level: int, split: str) -> Problem:
        """A random problem of one split."""
        for _ in range(PATIENCE):
            problem = self.make(rng, level)
            if self.split_of(problem) == split:
                return problem
        raise R1Error(f"split: {self.name} has no {split} problem; choose another")

    def split_of(self, problem: Problem) -> str:
        """The one split that `problem` belongs to."""
        return split_of_text(problem.key)

    def check(self, problem: Problem, text: str) -> bool:
        """1 for the exact answer, 0 for everything else."""
        return text.strip() == problem.answer

    def corrupt(self, problem: Problem, rng: Random) -> tuple[str, str]:
        """reasoning-gym writes no steps."""
        raise R1Error(
            f"{self.name}: has no steps to make a wrong one of; "
            "use it with wrong_steps = 0, or answer_only = 1"
        )


def family(dataset: str, **settings: Any) -> GymFamily:
    """The family of one dataset; `settings` are reasoning-gym's own.

    Raises:
        R1Error: unknown dataset, refused settings, or reasoning-gym is missing.
    """
    if dataset not in DATASETS:
        raise R1Error(
            f"family: {PREFIX}{dataset} is unknown; choose "
            + ", ".join(PREFIX + name for name in DATASETS)
        )
    try:
        source = _package().create_dataset(dataset, seed=0, size=1, **settings)
    except (AssertionError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split()) or "no reason given"
        raise R1Error(
            f"{PREFIX}{dataset}: reasoning-gym refuses {settings}: {reason}; "
            "see its configuration of that dataset"
        ) from e
    return GymFamily(dataset, source)


def _package() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError as e:
        raise R1Error(
            'reasoning-gym: not installed; pip install "r1lite[peers]" '
            "or pip install reasoning-gym"
        ) from e
    return reasoning_gym


def _question(dataset: str, item: dict[str, Any]) -> str:
    """One line: the dataset's short form, filled from the item's metadata."""
    template = DATASETS[dataset]
    if template is None:
        return " ".join(item["question"].split())
    values = dict(item["metadata"], question=item["question"])
    if isinstance(values.get("numbers"), list):
        values["numbers"] = " ".join(map(str, values["numbers"]))
    return template.format(**values)
