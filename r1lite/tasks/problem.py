"""A problem, a family of problems, and the split that keeps them apart.

Splits are by content, never by position: every problem names the smallest
problems of its family that stand inside it (`parts`), and each part falls into
train, validation or test by the sha256 of its text. One part held out holds the
whole problem out. So no text that trains can contain a problem that tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from r1lite.errors import R1Error

SPLITS = ("train", "validation", "test")
PATIENCE = 20_000  # draws without a hit after which a split counts as empty
_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash whole numbers to 64 bits (splitmix64, chained).

    `hash()` may differ between Python versions and `seed + index` makes item 1
    of seed 42 the item 0 of seed 43; this does neither.
    """
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def text_hash(text: str) -> int:
    """The first 64 bits of the sha256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@lru_cache(maxsize=1 << 16)
def split_of_text(text: str) -> str:
    """80/10/10 by sha256; the same on every machine, seed and Python."""
    tenth = text_hash(text) % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"


def check_split(split: str) -> None:
    """Raise R1Error unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise R1Error(f"split: {split!r} is unknown; choose {', '.join(SPLITS)}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with one way to its answer.

    `key` is what makes two problems the same problem (for sorting: the numbers,
    whatever their order); it decides uniqueness.
    """

    family: str
    level: int
    question: str
    answer: str
    steps: tuple[str, ...]
    key: str

    @property
    def reasoning(self) -> str:
        """The steps, one a line."""
        return "\n".join(self.steps)


def _body_is_key(body: str) -> str:
    return body


def _same_answer(body: str, text: str, answer: str) -> bool:
    return text.strip() == answer


@dataclass(frozen=True)
class Family:
    """Problems of one kind. A *body* is a question without its fixed words.

    Attributes:
        prefix: the fixed words; question = prefix + body.
        levels: the dial's positions.
        sample: (rng, level) -> body.
        solve: body -> (steps, answer).
        parts: body -> the smallest problems inside it, which decide its split.
        corrupt_body: (body, rng) -> (steps, answer), one step wrong and the rest
            following from it, the answer wrong.
        key_of: body -> canonical text.
        verify: (body, answer text, own answer) -> bool; never raises.
    """

    name: str
    prefix: str
    levels: tuple[int, ...]
    sample: Callable[[Random, int], str]
    solve: Callable[[str], tuple[tuple[str, ...], str]]
    parts: Callable[[str], tuple[str, ...]]
    corrupt_body: Callable[[str, Random], tuple[tuple[str, ...], str]]
    key_of: Callable[[str], str] = _body_is_key
    verify: Callable[[str, str, str], bool] = _same_answer

    def build(self, body: str, level: int) -> Problem:
        """The problem that `body` writes down."""
        steps, answer = self.solve(body)
        question = self.prefix + body
        return Problem(
            self.name,
            level,
            question,
            answer,
            steps,
            f"{self.name} {self.key_of(body)}",
        )

    def make(self, rng: Random, level: int) -> Problem:
        """A random problem of any split."""
        return self.build(self.sample(rng, level), level)

    def draw(self, rng: Random, level: int, split: str) -> Problem:
        """A random problem of one split."""
        for _ in range(PATIENCE):
            body = self.sample(rng, level)
            if self.split_of_body(body) == split:
                return self.build(body, level)
        raise R1Error(
            f"split: {self.name}/{level} has no {split} problem in {PATIENCE} "
            "draws; choose another level"
        )

    def body(self, problem: Problem) -> str:
        """The question without its fixed words."""
        return problem.question.removeprefix(self.prefix)

    def split_of_body(self, body: str) -> str:
        """test if any part is a test part, else validation likewise, else train."""
        worst = "train"
        for part in self.parts(body):
            split = split_of_text(f"{self.name} {part}")
            if split == "test":
                return split
            if split == "validation":
                worst = split
        return worst

    def split_of(self, problem: Problem) -> str:
        """The one split that `problem` belongs to."""
        return self.split_of_body(self.body(problem))

    def check(self, problem: Problem, text: str) -> bool:
        """Whether `text` answers the problem: strict, exact, never raises."""
        return self.verify(self.body(problem), text, problem.answer)

    def corrupt(self, problem: Problem, rng: Random) -> tuple[str, str]:
        """(reasoning, answer) with one wrong step carried to a wrong answer."""
        steps, answer = self.corrupt_body(self.body(problem), rng)
        return "\n".join(steps), answer
