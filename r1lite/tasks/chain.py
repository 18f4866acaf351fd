"""Chains of `+ - *` on digits, modulo 10, strictly from left to right.

Level = how many operands. A step applies one operation: three operands need two
look-ups in a table of 300 facts, eight need seven. Easy to write out, hard at once.
"""

from __future__ import annotations

from random import Random

from r1lite.tasks.problem import Family

PREFIX = "In order, mod 10: "
LEVELS = (3, 4, 5, 6, 7, 8)
OPERATIONS = "+-*"
_LINKS = [f"{op}{digit}" for op in OPERATIONS for digit in range(10)]


def apply(left: int, op: str, right: int) -> int:
    """One operation on two digits, modulo 10: a digit again."""
    if op == "+":
        return (left + right) % 10
    if op == "-":
        return (left - right) % 10
    return left * right % 10


def sample(rng: Random, level: int) -> str:
    """A body such as `3+4*2` (level 3)."""
    links = [_LINKS[rng.randrange(30)] for _ in range(level - 1)]
    return str(rng.randrange(10)) + "".join(links)


def solve(body: str) -> tuple[tuple[str, ...], str]:
    """One step for each operation, `3+4=7`, and the last digit."""
    value = int(body[0])
    steps = []
    for i in range(1, len(body), 2):
        result = apply(value, body[i], int(body[i + 1]))
        steps.append(f"{value}{body[i : i + 2]}={result}")
        value = result
    return tuple(steps), str(value)


def parts(body: str) -> tuple[str, ...]:
    """Every run of three operands: a held-out one must not be read in training.

    Stricter than refusing held-out prefixes: a longer chain contains one of these
    wherever it contains a shorter chain, so no test chain is part of a training one.
    """
    return tuple([body[i : i + 5] for i in range(0, len(body) - 4, 2)])


def corrupt(body: str, rng: Random) -> tuple[tuple[str, ...], str]:
    """One wrong result; redrawn when a later `*0` would hide the error."""
    count = len(body) // 2
    right = solve(body)[1]
    while True:
        wrong_step, shift = rng.randrange(count), rng.randrange(1, 10)
        value, steps = int(body[0]), []
        for i in range(count):
            link = body[2 * i + 1 : 2 * i + 3]
            result = apply(value, link[0], int(link[1]))
            if i == wrong_step:
                result = (result + shift) % 10
            steps.append(f"{value}{link}={result}")
            value = result
        if str(value) != right:
            return tuple(steps), str(value)


CHAIN = Family("chain", PREFIX, LEVELS, sample, solve, parts, corrupt)
