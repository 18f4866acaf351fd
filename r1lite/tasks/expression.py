"""Expressions in parentheses modulo 10, rewritten from the inside out.

Level = how many operations. A step replaces the leftmost pair of digits that
stands alone in parentheses, then writes the whole expression again; it needs the
chain's table of 300 facts and the skill of copying.
"""

from __future__ import annotations

import re
from random import Random

from r1lite.tasks.chain import OPERATIONS, apply
from r1lite.tasks.problem import Family

PREFIX = "Mod 10: "
LEVELS = (2, 3, 4, 5, 6)
_INNERMOST = re.compile(r"\((\d)([-+*])(\d)\)")
_TWO_OPERATIONS = re.compile(r"\((?:\d[-+*]\(\d[-+*]\d\)|\(\d[-+*]\d\)[-+*]\d)\)")


def sample(rng: Random, level: int) -> str:
    """A body such as `(3+4)*(2-5)` (level 3): every inner operation in ( )."""
    return _tree(rng, level)[1:-1]


def _tree(rng: Random, operations: int) -> str:
    if operations == 0:
        return str(rng.randrange(10))
    left = rng.randrange(operations)
    op = OPERATIONS[rng.randrange(3)]
    return f"({_tree(rng, left)}{op}{_tree(rng, operations - 1 - left)})"


def _rewrite(body: str, wrong: int = -1, shift: int = 0) -> tuple[tuple[str, ...], str]:
    """The steps and the answer; step `wrong` is off by `shift`."""
    text = f"({body})"
    steps: list[str] = []
    while match := _INNERMOST.search(text):
        left, op, right = match.groups()
        result = apply(int(left), op, int(right))
        if len(steps) == wrong:
            result = (result + shift) % 10
        text = f"{text[: match.start()]}{result}{text[match.end() :]}"
        step = f"{left}{op}{right}={result}"
        steps.append(f"{step} {text[1:-1]}" if len(text) > 1 else step)
    return tuple(steps), text


def solve(body: str) -> tuple[tuple[str, ...], str]:
    """`3+4=7 7*(2-5)`, `2-5=7 7*7`, `7*7=9`; answer 9."""
    return _rewrite(body)


def parts(body: str) -> tuple[str, ...]:
    """Every expression of two operations in the body or in its rewritings.

    Any larger expression comes down to one of these on the way to its digit, so
    holding these out holds out everything that contains a held-out expression.
    """
    text, found = f"({body})", []
    while match := _INNERMOST.search(text):
        found += [pair[1:-1] for pair in _TWO_OPERATIONS.findall(text)]
        left, op, right = match.groups()
        result = apply(int(left), op, int(right))
        text = f"{text[: match.start()]}{result}{text[match.end() :]}"
    return tuple(dict.fromkeys(found))


def corrupt(body: str, rng: Random) -> tuple[tuple[str, ...], str]:
    """One wrong result; redrawn when a later `*0` would hide the error."""
    steps, right = solve(body)
    while True:
        wrong = _rewrite(body, rng.randrange(len(steps)), rng.randrange(1, 10))
        if wrong[1] != right:
            return wrong


EXPRESSION = Family("expression", PREFIX, LEVELS, sample, solve, parts, corrupt)
