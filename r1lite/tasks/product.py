"""Products of many-digit numbers by partial sums, lowest places first.

Level 1 is 3 digits x 1, level 2 is 4 x 1, level 3 is 3 x 2. A step multiplies one
place by one place and adds it to the running sum; low places first, so that a new
partial product meets the sum in one or two digits only.
"""

from __future__ import annotations

from random import Random

from r1lite.tasks.problem import Family

PREFIX = "Multiply "
LEVELS = (1, 2, 3)
_SPANS = {  # level: (first factor from, below, second factor from, below)
    1: (100, 1000, 2, 10),
    2: (1000, 10000, 2, 10),
    3: (100, 1000, 11, 100),
}


def _is_one_place(number: int) -> bool:
    """Whether only the leading digit is not 0: `300*6` is itself a step."""
    return set(str(number)[1:]) <= {"0"}


def allowed(first: int, second: int) -> bool:
    """No problem that another problem's step writes out, no factor ending in 0."""
    return not _is_one_place(first) and second % 10 > 0


def sample(rng: Random, level: int) -> str:
    """A body such as `347*6`."""
    low, high, least, below = _SPANS[level]
    while True:
        first, second = rng.randrange(low, high), rng.randrange(least, below)
        if allowed(first, second):
            return f"{first}*{second}"


def _places(number: int) -> list[int]:
    """347 -> [7, 40, 300]."""
    return [int(d) * 10**i for i, d in enumerate(reversed(str(number)))]


def _work(body: str, wrong: int = -1, rng: Random | None = None) -> list[str]:
    """The steps, and last the answer; value number `wrong` gets a false digit.

    The values count partial products and running sums in the order written.
    """
    first, second = (int(number) for number in body.split("*"))
    steps: list[str] = []
    total = written = 0

    def write(value: int) -> int:
        nonlocal written
        written += 1
        return _misread(value, rng) if rng and written - 1 == wrong else value

    for b in _places(second):
        for a in _places(first):
            partial = write(a * b)
            total = write(total + partial) if steps else partial
            tail = f" sum {total}" if steps else ""
            steps.append(f"{a}*{b}={partial}{tail}")
    return [*steps, str(total)]


def _misread(value: int, rng: Random) -> int:
    """`value` with one digit changed, as long as before (0 becomes 1 to 9)."""
    digits = list(str(value))
    place = rng.randrange(len(digits))
    least = 1 if place == 0 else 0
    choices = [d for d in range(least, 10) if str(d) != digits[place]]
    digits[place] = str(rng.choice(choices))
    return int("".join(digits))


def solve(body: str) -> tuple[tuple[str, ...], str]:
    """`7*6=42`, `40*6=240 sum 282`, `300*6=1800 sum 2082`; answer 2082."""
    *steps, answer = _work(body)
    return tuple(steps), answer


def parts(body: str) -> tuple[str, ...]:
    """The product itself and the level 1 product whose sums it writes out."""
    first, second = (int(number) for number in body.split("*"))
    inner = (first % 1000, second % 10)
    if inner == (first, second) or inner[0] < 100 or inner[1] < 2:
        return (body,)
    if not allowed(*inner):
        return (body,)
    return (body, f"{inner[0]}*{inner[1]}")


def corrupt(body: str, rng: Random) -> tuple[tuple[str, ...], str]:
    """One partial product or running sum with one false digit, the rest follows."""
    values = 2 * len(solve(body)[0]) - 1
    *steps, answer = _work(body, rng.randrange(values), rng)
    return tuple(steps), answer


PRODUCT = Family("product", PREFIX, LEVELS, sample, solve, parts, corrupt)
