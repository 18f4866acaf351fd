"""Small mathematical texts around the worked examples: tables, counting, stories.

Single operations only. A text of two operations could be a held-out problem.
"""

from __future__ import annotations

from random import Random

from r1lite.tasks.chain import OPERATIONS, apply

NAMES = ("Ann", "Ben", "Carl", "Dora", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "stones")
DEFINITIONS = (
    "Mod 10 keeps the last digit: 7+5=2 mod 10, since 12 ends in 2.",
    "Below zero mod 10 we add ten: 2-5=7 mod 10.",
    "In order means from left to right, one operation after another.",
    "A sum is what we get when we add numbers.",
    "A difference is what is left when we take one number from another.",
    "A product is what we get when we multiply numbers.",
    "An even number ends in 0, 2, 4, 6 or 8.",
    "An odd number ends in 1, 3, 5, 7 or 9.",
    "Any number times 0 is 0. Any number times 1 is the number itself.",
    "The order of two numbers does not change their sum or their product.",
    "The order of two numbers does change their difference.",
    "Parentheses come first: work out the innermost pair before the others.",
    "To multiply long numbers, multiply place by place and add up the parts.",
    "The digit 4 in 347 stands for 40.",
    "To sort numbers, take the smallest, then the smallest of the rest.",
    "Of two numbers with two digits, compare the tens first, then the ones.",
    "To make a number from others, ask what is missing when one is left out.",
    "A step is right when anyone can check it alone.",
    "Half of a number is what two equal shares hold.",
    "An equation says that both sides are the same number.",
)


def tables(rng: Random) -> str:
    """Facts that the steps of the families use, one a line."""
    kind = rng.randrange(4)
    if kind == 0:
        lines = ["Mod 10:", *_row_mod_10(rng)]
    elif kind == 1:
        lines = ["Mod 10:", *(_fact_mod_10(rng) for _ in range(20))]
    elif kind == 2:
        lines = ["Products of places:", *(_place_product(rng) for _ in range(12))]
    else:
        lines = ["Sum, difference, product:", *(_pair(rng) for _ in range(10))]
    return "\n".join(lines) + "\n"


def _row_mod_10(rng: Random) -> list[str]:
    op, left = OPERATIONS[rng.randrange(3)], rng.randrange(10)
    return [f"{left}{op}{right}={apply(left, op, right)}" for right in range(10)]


def _fact_mod_10(rng: Random) -> str:
    op, left, right = OPERATIONS[rng.randrange(3)], rng.randrange(10), rng.randrange(10)
    return f"{left}{op}{right}={apply(left, op, right)}"


def _place_product(rng: Random) -> str:
    a = rng.randrange(1, 10) * 10 ** rng.randrange(4)
    b = rng.randrange(1, 10) * 10 ** rng.randrange(2)
    return f"{a}*{b}={a * b}"


def _pair(rng: Random) -> str:
    a, b = rng.randrange(2, 26), rng.randrange(2, 26)
    return f"{a} {b}: {a + b} {abs(a - b)} {a * b}"


def counting(rng: Random) -> str:
    """Counting up or down by a small step."""
    step = rng.randrange(1, 6) * (1 if rng.randrange(2) else -1)
    start = rng.randrange(60, 200)
    numbers = ", ".join(str(start + i * step) for i in range(12))
    way = "up" if step > 0 else "down"
    return f"Count {way} by {abs(step)} from {start}: {numbers}.\n"


def equalities(rng: Random) -> str:
    """Sums, differences and comparisons of two numbers."""
    lines = []
    for _ in range(8):
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        big, small = max(a, b), min(a, b)
        relation = "=" if a == b else "<" if a < b else ">"
        choices = (f"{a} {relation} {b}", f"{a} + {b} = {a + b}")
        lines.append((*choices, f"{big} - {small} = {big - small}")[rng.randrange(3)])
    return "\n".join(lines) + "\n"


def stories(rng: Random) -> str:
    """Three short word problems, each one operation."""
    return "\n".join(_story(rng) for _ in range(3)) + "\n"


def _story(rng: Random) -> str:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randrange(2, 20), rng.randrange(2, 20)
    kind = rng.randrange(3)
    if kind == 0:
        return (
            f"{name} has {a} {thing} and finds {b} more. {a} + {b} = {a + b}, "
            f"so {name} has {a + b} {thing}."
        )
    if kind == 1:
        return (
            f"{name} had {a + b} {thing} and gave away {b}. {a + b} - {b} = {a}, "
            f"so {name} has {a} {thing} left."
        )
    return (
        f"{name} fills {a} bags with {b} {thing} each. {a} * {b} = {a * b}, "
        f"so that is {a * b} {thing}."
    )


def definitions(rng: Random) -> str:
    """Three sentences that say what a word means."""
    return " ".join(rng.choice(DEFINITIONS) for _ in range(3)) + "\n"
