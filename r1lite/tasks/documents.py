"""Plain text for the mathematics of pretraining, in the notation of the steps.

Reinforcement learning can only sharpen what the base model sometimes does, so the
base must have read worked examples. All problems come from the train split; tables
and stories hold single operations, which no family asks for. No control tokens.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping
from itertools import accumulate
from random import Random

from r1lite.errors import R1Error
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
KINDS = {  # weights of worked examples and of each kind of prose
    "worked": 0.7,
    "tables": 0.12,
    "counting": 0.04,
    "equalities": 0.05,
    "stories": 0.06,
    "definitions": 0.03,
}
EXAMPLES = 6  # worked examples in one document


class Documents:
    """Endless documents; the index alone decides which.

    Args:
        shares: "family/level" -> weight of the worked examples; None: all alike.
        with_steps: share of worked documents that write the steps; the others
            state the answer at once.
        kinds: weights as in KINDS.
    """

    def __init__(
        self,
        seed: int,
        shares: Mapping[str, float] | None = None,
        with_steps: float = 0.5,
        kinds: Mapping[str, float] = KINDS,
    ) -> None:
        _check_kinds(kinds)
        if not 0 <= with_steps <= 1:
            raise R1Error(f"with_steps: {with_steps} is no share; give 0 to 1")
        self.with_steps = with_steps
        self._seed = mix(_SALT, seed)
        self._kinds = list(kinds)
        self._bounds = list(accumulate(kinds.values()))
        self._stream = Stream(_all_levels() if shares is None else shares, self._seed)

    def at(self, index: int) -> str:
        """Document number `index` (0, 1, 2, ...)."""
        rng = Random(mix(self._seed, index))
        pick = bisect(self._bounds, rng.random() * self._bounds[-1])
        kind = self._kinds[min(pick, len(self._kinds) - 1)]
        return self._worked(rng, index) if kind == "worked" else _PROSE[kind](rng)

    def _worked(self, rng: Random, index: int) -> str:
        """Several questions with their answers, all with steps or all without."""
        steps_too = rng.random() < self.with_steps
        texts = []
        for i in range(EXAMPLES):
            problem = self._stream.problem_at(index * EXAMPLES + i)
            lines = [problem.question, *(problem.steps if steps_too else ())]
            texts.append("\n".join([*lines, f"Answer: {problem.answer}"]))
        return "\n\n".join(texts) + "\n"


def documents(
    seed: int,
    count: int | None = None,
    shares: Mapping[str, float] | None = None,
    with_steps: float = 0.5,
    *,
    size: int | None = None,
    kinds: Mapping[str, float] = KINDS,
) -> list[str]:
    """The first `count` documents, or the fewest that hold `size` bytes.

    Raises:
        R1Error: neither or both of `count` and `size`, or an argument that
            `Documents` refuses.
    """
    if (count is None) == (size is None):
        raise R1Error("documents: give either count or size (bytes)")
    source = Documents(seed, shares, with_steps, kinds)
    if count is not None:
        return [source.at(i) for i in range(count)]
    found: list[str] = []
    held = 0
    while size is not None and held < size:
        found.append(source.at(len(found)))
        held += len(found[-1].encode())
    return found


def _all_levels() -> dict[str, float]:
    return {f"{f.name}/{n}": 1.0 for f in FAMILIES.values() for n in f.levels}


def _check_kinds(kinds: Mapping[str, float]) -> None:
    for kind, weight in kinds.items():
        if kind not in KINDS:
            raise R1Error(f"kinds: {kind!r} is unknown; choose {', '.join(KINDS)}")
        if weight < 0:
            raise R1Error(f"kinds.{kind}: {weight} is below 0; give 0 or more")
    if sum(kinds.values()) <= 0:
        raise R1Error("kinds: all weights are 0; give at least one above 0")
