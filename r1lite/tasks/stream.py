"""Drawing problems: unique sets for evaluation, an endless stream for training."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from itertools import accumulate
from random import Random

from r1lite.errors import R1Error
from r1lite.tasks.families import family_level
from r1lite.tasks.problem import Problem, check_split, mix, text_hash


def problems(
    family: str, level: int, split: str, count: int, seed: int
) -> list[Problem]:
    """`count` problems of one split, no two with the same key.

    Raises:
        R1Error: unknown family, level or split, or the space is too small.
    """
    check_split(split)
    maker, level = family_level(f"{family}/{level}")
    rng = Random(mix(text_hash(f"{family}/{level}/{split}"), seed))
    found: dict[str, Problem] = {}
    draws = last_new = 0
    # After so many repeats in a row the chance that one is still hidden is small.
    while len(found) < count and draws - last_new <= 2_000 + 20 * len(found):
        problem = maker.draw(rng, level, split)
        draws += 1
        if problem.key not in found:
            found[problem.key] = problem
            last_new = draws
    if len(found) < count:
        raise R1Error(
            f"count: {family}/{level} has only {len(found)} unique {split} problems "
            f"({draws} draws), {count} were asked for; ask for fewer or raise the level"
        )
    return list(found.values())


class Stream:
    """Endless problems of a weighted mix; the index alone decides the problem.

    Resuming is exact: step s of a run asks for the same indices again.
    """

    def __init__(
        self, shares: Mapping[str, float], seed: int, split: str = "train"
    ) -> None:
        check_split(split)
        check_shares(shares)
        self.split = split
        self._base = mix(text_hash(split), seed)
        self._choices = [family_level(name) for name in shares]
        self._bounds = list(accumulate(shares.values()))

    def problem_at(self, index: int) -> Problem:
        """Problem number `index` (0, 1, 2, ...)."""
        rng = Random(mix(self._base, index))
        pick = bisect(self._bounds, rng.random() * self._bounds[-1])
        family, level = self._choices[min(pick, len(self._choices) - 1)]
        return family.draw(rng, level, self.split)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise R1Error unless `shares` names families and weighs them."""
    if not shares:
        raise R1Error('shares: empty; name at least one family, {"chain/4": 1.0}')
    for name, weight in shares.items():
        family_level(name)
        if not (math.isfinite(weight) and weight >= 0):
            raise R1Error(f"shares.{name}: {weight} is no weight; give 0 or more")
    if sum(shares.values()) <= 0:
        raise R1Error("shares: all weights are 0; give at least one above 0")


def stream(shares: Mapping[str, float], seed: int, split: str = "train") -> Stream:
    """Problems of `shares`, {"family/level": weight}; weights need not sum to 1.

    Raises:
        R1Error: unknown family or level (the message lists what exists), a weight
            below 0, or nothing to draw from.
    """
    return Stream(shares, seed, split)
