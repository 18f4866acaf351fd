"""Countdown: reach a target with `+ - *`, every number exactly once.

Level = how many numbers, 3 or 4. The reasoning is the search written out. To use
three numbers, one is left out and the other two must give what it lacks:

    47 5: 42 52 / 9 2: 11 7 18 no      47 without 5 needs 42 or 52; 9 and 2 give ...

Each line restates its target, since a line that does not is hard to judge.
With four numbers a line `60-13=47` first moves the target past one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from r1lite.tasks.arithmetic import value_of
from r1lite.tasks.problem import Family

PREFIX = "Make "
LEVELS = (3, 4)
LEAST, BELOW = 2, 26  # the numbers
TARGETS = range(10, 200)
MAX_LINES = 4  # of a search that a problem may need ...
MAX_CHARACTERS = 150  # ... and of its reasoning: it must fit a small context


@dataclass(frozen=True)
class Line:
    """One line of search. `{}` in a form stands for the pair's expression."""

    head: str  # a target moved past the fourth number, "" otherwise
    target: int
    out: int
    pair: tuple[int, int]
    needs: tuple[tuple[int, str], ...]  # (value the pair must have, form)
    outer: str  # form of the fourth number around it, "{}" otherwise

    @property
    def gives(self) -> tuple[tuple[int, str], ...]:
        """What the pair can be: (value, expression)."""
        a, b = self.pair
        big, small = max(a, b), min(a, b)
        return (a + b, f"{a}+{b}"), (big - small, f"{big}-{small}"), (a * b, f"{a}*{b}")

    def hit(self) -> tuple[int, str, str] | None:
        """(value, form, pair's expression) of the first need that is given."""
        given = dict(reversed(self.gives))
        for value, form in self.needs:
            if value in given:
                return value, form, given[value]
        return None

    def text(self, gives: list[int], verdict: str) -> str:
        """The line as the model reads it."""
        needs = " ".join(str(value) for value, _ in self.needs)
        values = " ".join(map(str, gives))
        a, b = self.pair
        return f"{self.target} {self.out}: {needs} / {a} {b}: {values} {verdict}"


def _needs(target: int, number: int) -> tuple[tuple[int, str], ...]:
    """What the other numbers must make so that `number` completes `target`."""
    found = []
    if target > number:
        found.append((target - number, f"{{}}+{number}"))
    found.append((target + number, f"{{}}-{number}"))
    if number > target:
        found.append((number - target, f"{number}-{{}}"))
    if target % number == 0:
        found.append((target // number, f"{{}}*{number}"))
    return tuple(found)


def _three(target: int, numbers: list[int], head: str, outer: str) -> Iterator[Line]:
    for i, out in enumerate(numbers):
        a, b = numbers[:i] + numbers[i + 1 :]
        yield Line(
            head if i == 0 else "", target, out, (a, b), _needs(target, out), outer
        )


def _lines(target: int, numbers: list[int]) -> Iterator[Line]:
    """The search in its fixed order, to its end."""
    if len(numbers) == 3:
        yield from _three(target, numbers, "", "{}")
        return
    for i, out in enumerate(numbers):
        rest = numbers[:i] + numbers[i + 1 :]
        for value, form in _needs(target, out):
            sign = {"+": "-", "-": "+", "*": "/"}[form[2]] if form[0] == "{" else "-"
            first, second = (target, out) if form[0] == "{" else (out, target)
            yield from _three(value, rest, f"{first}{sign}{second}={value}", form)


def _problem(target: int, numbers: list[int]) -> str:
    return f"{target} from {' '.join(map(str, sorted(numbers, reverse=True)))}"


def _read(body: str) -> tuple[int, list[int]]:
    target, numbers = body.split(" from ")
    return int(target), [int(n) for n in numbers.split()]


@lru_cache(maxsize=1 << 10)
def _search(body: str) -> tuple[Line, ...] | None:
    """The lines up to the first hit; None when MAX_LINES do not reach one."""
    found = []
    for line in _lines(*_read(body)):
        found.append(line)
        if line.hit():
            return tuple(found)
        if len(found) == MAX_LINES:
            return None
    return None


def sample(rng: Random, level: int) -> str:
    """A body such as `47 from 9 5 2` whose search is short enough to write.

    Largest first always: one problem has one search, and so one split.
    """
    while True:
        numbers: list[int] = []
        while len(numbers) < level:
            number = rng.randrange(LEAST, BELOW)
            if number not in numbers:
                numbers.append(number)
        numbers.sort(reverse=True)
        target = _random_target(rng, numbers)
        if target in TARGETS and target not in numbers:
            body = _problem(target, numbers)
            if _search(body) and len("\n".join(solve(body)[0])) <= MAX_CHARACTERS:
                return body


def _random_target(rng: Random, numbers: list[int]) -> int:
    """Combine three numbers in any order; of four, the largest comes last."""
    inner = numbers[-3:]
    inner.append(inner.pop(rng.randrange(3)))  # any of three may be left out
    value = inner[0]
    for number in inner[1:] + numbers[:-3]:
        value = (value + number, abs(value - number), value * number)[rng.randrange(3)]
    return value


def _write(lines: tuple[Line, ...]) -> list[str]:
    """Lines that found nothing."""
    steps = []
    for line in lines:
        steps += [line.head] if line.head else []
        steps.append(line.text([value for value, _ in line.gives], "no"))
    return steps


def _finish(
    line: Line, gives: list[int], value: int, form: str, pair: str
) -> tuple[list[str], str]:
    """The line that hits, the check of it, and the answer."""
    steps = [line.head] if line.head else []
    steps.append(line.text(gives, f"hit {value}"))
    steps.append(f"{pair}={value} {form.format(value)}={line.target}")
    return steps, line.outer.format(_wrapped(form.format(f"({pair})"), line.outer))


def _wrapped(text: str, outer: str) -> str:
    return text if outer == "{}" else f"({text})"


def solve(body: str) -> tuple[tuple[str, ...], str]:
    """The search to its first hit, and the expression it found."""
    lines = _search(body)
    hit = lines[-1].hit() if lines else None
    if not lines or not hit:
        raise ValueError(f"no short search solves {body}")
    gives = [value for value, _ in lines[-1].gives]
    steps, answer = _finish(lines[-1], gives, *hit)
    return tuple(_write(lines[:-1]) + steps), answer


def key_of(body: str) -> str:
    """Target and numbers, largest first."""
    target, numbers = _read(body)
    return _problem(target, numbers)


def parts(body: str) -> tuple[str, ...]:
    """The problem itself and the three-number problems its search goes through."""
    numbers = _read(body)[1]
    found = [key_of(body)]
    for line in _search(body) or ():
        if len(numbers) == 4:
            found.append(_problem(line.target, [line.out, *line.pair]))
    return tuple(dict.fromkeys(found))


def corrupt(body: str, rng: Random) -> tuple[tuple[str, ...], str]:
    """One value that a pair gives is wrong, looks like a hit, and is believed.

    Where the pair gives all that is needed, the last equation is wrong instead.
    """
    lines = _search(body) or ()
    stop = rng.randrange(len(lines))
    line, hit = lines[stop], lines[stop].hit()
    gives = [value for value, _ in line.gives]
    place = gives.index(hit[0]) if hit else rng.randrange(3)
    missing = [need for need in line.needs if need[0] not in gives]
    if missing:
        gives[place], form = rng.choice(missing)
    else:
        form = rng.choice([f for value, f in line.needs if value != gives[place]])
    pair = line.gives[place][1]
    steps, answer = _finish(line, gives, gives[place], form, pair)
    return tuple(_write(lines[:stop]) + steps), answer


def verify(body: str, text: str, answer: str) -> bool:
    """Whether `text` makes the target of each number once; any way is right."""
    target, numbers = _read(body)
    return value_of(text, numbers) == target


COUNTDOWN = Family(
    "countdown", PREFIX, LEVELS, sample, solve, parts, corrupt, key_of, verify
)
