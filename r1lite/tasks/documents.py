"""Plain text for the mathematics of pretraining, in the notation of the steps.

Reinforcement learning can only sharpen what the base model sometimes does, so the
base must have read worked examples. All problems come from the train split; tables
and stories hold single operations, which no family asks for. No control tokens.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random

from pydantic import Field

from r1lite.errors import R1Error
from r1lite.settings import Section
from r1lite.tasks.families import FAMILIES
from r1lite.tasks.problem import mix, text_hash
from r1lite.tasks.prose import counting, definitions, equalities, stories, tables
from r1lite.tasks.stream import Stream

_SALT = text_hash("documents")
_PROSE: dict[str, Callable[[Random], str]] = {
    "tables": tables,
    "counting": counting,
    "equalities": equalities,
    "stories": stories,
    "definitions": definitions,
}
_KINDS = {
    "worked": 0.7,
    "tables": 0.12,
    "counting": 0.04,
    "equalities": 0.05,
    "stories": 0.06,
    "definitions": 0.03,
}


def _all_levels() -> dict[str, float]:
    return {f"{f.name}/{n}": 1.0 for f in FAMILIES.values() for n in f.levels}


class DocumentConfig(Section):
    """What the documents are made of.

    Attributes:
        shares: "family/level" -> weight of the worked examples.
        steps: share of worked documents that write the steps; the others state
            the answer at once.
        kinds: weight of worked examples and of each kind of prose.
        examples: how many worked examples one document holds.
    """

    shares: dict[str, float] = Field(default_factory=_all_levels)
    steps: float = Field(default=0.7, ge=0, le=1)
    kinds: dict[str, float] = Field(default_factory=lambda: dict(_KINDS))
    examples: int = Field(default=6, ge=1)


class Documents:
    """Endless documents; the index alone decides which."""

    def __init__(self, config: DocumentConfig, seed: int) -> None:
        known = ["worked", *_PROSE]
        for kind, weight in config.kinds.items():
            if kind not in known:
                raise R1Error(f"kinds: {kind!r} is unknown; choose {', '.join(known)}")
            if weight < 0:
                raise R1Error(f"kinds.{kind}: {weight} is below 0; give 0 or more")
        if sum(config.kinds.values()) <= 0:
            raise R1Error("kinds: all weights are 0; give at least one above 0")
        self.config = config
        self._seed = mix(_SALT, seed)
        self._kinds = list(config.kinds)
        self._bounds = list(accumulate(config.kinds.values()))
        self._stream = Stream(config.shares, self._seed)

    def at(self, index: int) -> str:
        """Document number `index` (0, 1, 2, ...)."""
        rng = Random(mix(self._seed, index))
        pick = bisect(self._bounds, rng.random() * self._bounds[-1])
        kind = self._kinds[min(pick, len(self._kinds) - 1)]
        return self._worked(rng, index) if kind == "worked" else _PROSE[kind](rng)

    def _worked(self, rng: Random, index: int) -> str:
        """Several questions with their answers, all with steps or all without."""
        with_steps = rng.random() < self.config.steps
        count, texts = self.config.examples, []
        for i in range(count):
            problem = self._stream.problem_at(index * count + i)
            lines = [problem.question, *(problem.steps if with_steps else ())]
            texts.append("\n".join([*lines, f"Answer: {problem.answer}"]))
        return "\n\n".join(texts) + "\n"

    def __iter__(self) -> Iterator[str]:
        index = 0
        while True:
            yield self.at(index)
            index += 1


def documents(
    seed: int,
    *,
    count: int | None = None,
    size: int | None = None,
    config: DocumentConfig | None = None,
) -> list[str]:
    """The first `count` documents, or as many as hold at least `size` bytes.

    Raises:
        R1Error: neither or both of `count` and `size`, or an impossible config.
    """
    if (count is None) == (size is None):
        raise R1Error("documents: give either count or size (bytes), not both")
    found: list[str] = []
    held = 0
    for text in Documents(config or DocumentConfig(), seed):
        if len(found) == count or (size is not None and held >= size):
            break
        found.append(text)
        held += len(text.encode())
    return found
