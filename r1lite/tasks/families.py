"""The families by name, and looking one up by "family/level"."""

from __future__ import annotations

from functools import cache
from random import Random

from r1lite.errors import R1Error
from r1lite.tasks import gym
from r1lite.tasks.chain import CHAIN
from r1lite.tasks.countdown import COUNTDOWN
from r1lite.tasks.expression import EXPRESSION
from r1lite.tasks.problem import Family, Problem
from r1lite.tasks.product import PRODUCT
from r1lite.tasks.sorting import SORTING

_ALL = (CHAIN, PRODUCT, EXPRESSION, COUNTDOWN, SORTING)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def family(name: str) -> Family | gym.GymFamily:
    """The family called `name`; R1Error lists those that exist."""
    if name in FAMILIES:
        return FAMILIES[name]
    if name.startswith(gym.PREFIX):
        return _gym_family(name.removeprefix(gym.PREFIX))
    raise R1Error(
        f"family: {name!r} is unknown; choose {', '.join(FAMILIES)}, "
        f"or {gym.PREFIX}... for a dataset of reasoning-gym"
    )


@cache
def _gym_family(dataset: str) -> gym.GymFamily:
    return gym.family(dataset)


def family_level(name: str) -> tuple[Family | gym.GymFamily, int]:
    """Split "chain/4" into its family and level, both checked."""
    kind, _, level = name.partition("/")
    found = family(kind)
    if not level.isdecimal() or int(level) not in found.levels:
        known = ", ".join(f"{kind}/{n}" for n in found.levels)
        raise R1Error(f"level: {name!r} is unknown; choose {known}")
    return found, int(level)


def split_of(problem: Problem) -> str:
    """The one split of train, validation, test that `problem` belongs to."""
    return family(problem.family).split_of(problem)


def check(problem: Problem, text: str) -> bool:
    """Whether `text` answers `problem`; strict, never raises on any text."""
    return family(problem.family).check(problem, text)


def corrupt(problem: Problem, rng: Random) -> tuple[str, str]:
    """(reasoning, answer): one wrong step, carried through to a wrong answer."""
    return family(problem.family).corrupt(problem, rng)
