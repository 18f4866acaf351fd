"""Sorting two-digit numbers by selection. Level = how many numbers.

A step picks the smallest number and copies the others in their order.
"""

from __future__ import annotations

from random import Random

from r1lite.tasks.problem import Family

PREFIX = "Sort "
LEVELS = (3, 4, 5, 6, 7)


def sample(rng: Random, level: int) -> str:
    """A body such as `45 12 83`: different numbers from 10 to 99, unsorted."""
    while True:
        numbers: list[int] = []
        while len(numbers) < level:
            number = rng.randrange(10, 100)
            if number not in numbers:
                numbers.append(number)
        if numbers != sorted(numbers):
            return " ".join(map(str, numbers))


def _select(body: str, wrong: int = -1, pick: int = 0) -> tuple[list[str], list[str]]:
    """(steps, picks); step `wrong` takes the `pick`-th number that is not smallest."""
    rest = body.split()
    picks: list[str] = []
    steps: list[str] = []
    while len(rest) > 1:
        chosen = min(rest)  # two digits each: text order is number order
        if len(steps) == wrong:
            chosen = [number for number in rest if number != chosen][pick]
        rest.remove(chosen)
        picks.append(chosen)
        steps.append(f"{chosen}: {' '.join(rest)}")
    return steps, picks + rest


def solve(body: str) -> tuple[tuple[str, ...], str]:
    """`12: 45 83`, `45: 83`; answer `12 45 83`."""
    steps, picks = _select(body)
    return tuple(steps), " ".join(picks)


def key_of(body: str) -> str:
    """The numbers in order: two orders of the same numbers are one problem."""
    return " ".join(sorted(body.split()))


def parts(body: str) -> tuple[str, ...]:
    """The three largest numbers.

    Selection leaves ever shorter lists of the largest numbers, each a problem of a
    lower level; all of them share these three and so share the split.
    """
    return (" ".join(sorted(body.split())[-3:]),)


def corrupt(body: str, rng: Random) -> tuple[tuple[str, ...], str]:
    """One step takes a number that is not the smallest; the rest follows."""
    count = len(body.split())
    wrong = rng.randrange(count - 1)
    steps, picks = _select(body, wrong, rng.randrange(count - 1 - wrong))
    return tuple(steps), " ".join(picks)


SORTING = Family("sorting", PREFIX, LEVELS, sample, solve, parts, corrupt, key_of)
