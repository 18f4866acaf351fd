"""Countdown: the search is true, any right expression counts, nothing else does."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.tasks.arithmetic import value_of
from r1lite.tasks.countdown import COUNTDOWN, LEVELS, MAX_CHARACTERS
from r1lite.tasks.problem import Problem

LINE = re.compile(
    r"(\d+) (\d+): ([\d ]+) / (\d+) (\d+): (\d+) (\d+) (\d+) (no|hit \d+)"
)


def false_facts(problem: Problem, reasoning: str) -> int:
    """False gives, plus false final equations that no false give explains."""
    *search, final = reasoning.split("\n")
    wrong = 0
    target = int(COUNTDOWN.body(problem).split(" ")[0])
    believed: dict[str, int] = {}
    for line in search:
        if "=" in line:
            left, target = line.split("=")[0], int(line.split("=")[1])
            a, sign, b = re.fullmatch(r"(\d+)([-+/])(\d+)", left).groups()  # type: ignore[union-attr]
            made = {"+": int(a) + int(b), "-": int(a) - int(b), "/": int(a) / int(b)}
            assert made[sign] == target
            continue
        match = LINE.fullmatch(line)
        assert match, line
        assert int(match[1]) == target
        a, b = sorted((int(match[4]), int(match[5])), reverse=True)
        gives = [int(match[i]) for i in (6, 7, 8)]
        wrong += sum(x != y for x, y in zip(gives, (a + b, a - b, a * b), strict=True))
        believed = dict(zip((f"{a}-{b}", f"{a}*{b}"), gives[1:], strict=True))
        believed |= {f"{match[4]}+{match[5]}": gives[0]}
        believed |= {f"{match[4]}*{match[5]}": gives[2]}
        needs = {int(n) for n in match[3].split()}
        assert (match[9] != "no") == (line == search[-1])
        if match[9] != "no":
            assert int(match[9][4:]) in needs & set(gives)
    pair, outer = final.split(" ")
    expression, value = pair.split("=")
    assert believed[expression] == int(value)
    numbers = [int(n) for n in re.findall(r"\d+", outer.split("=")[0])]
    assert int(outer.split("=")[1]) == target
    return wrong + (value_of(outer.split("=")[0], numbers) != target)


@pytest.mark.parametrize("level", LEVELS)
def test_the_search_is_true_and_its_answer_counts(level: int) -> None:
    rng = Random(level)
    for _ in range(100):
        problem = COUNTDOWN.make(rng, level)
        assert false_facts(problem, problem.reasoning) == 0
        assert COUNTDOWN.check(problem, problem.answer)
        assert len(problem.reasoning) <= MAX_CHARACTERS


@pytest.mark.parametrize("level", LEVELS)
def test_corruption_is_one_false_fact_and_a_wrong_answer(level: int) -> None:
    rng = Random(level)
    for _ in range(200):
        problem = COUNTDOWN.make(rng, level)
        reasoning, answer = COUNTDOWN.corrupt(problem, rng)
        assert false_facts(problem, reasoning) == 1
        assert not COUNTDOWN.check(problem, answer)


def test_corruption_where_the_pair_gives_every_need() -> None:
    problem = COUNTDOWN.build("18 from 14 8 4", 3)
    assert problem.steps[0] == "18 14: 4 32 / 8 4: 12 4 32 hit 4"
    for seed in range(10):
        reasoning, answer = COUNTDOWN.corrupt(problem, Random(seed))
        assert false_facts(problem, reasoning) == 1
        assert not COUNTDOWN.check(problem, answer)


def test_one_problem_is_written_in_one_way() -> None:
    rng = Random(0)
    for level in LEVELS:
        for _ in range(30):
            body = COUNTDOWN.body(COUNTDOWN.make(rng, level))
            numbers = [int(n) for n in body.split(" from ")[1].split()]
            assert numbers == sorted(set(numbers), reverse=True)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("(9*2)+5", True),
        (" 5 + 2*9 ", True),
        ("5+9*2", True),
        ("(5+(9*2))", True),
        ("9*2+5.", False),
        ("9*(2+5)", False),
        ("23", False),
        ("9*2+5+0", False),
        ("9+9+5", False),
        ("92-5", False),
        ("9*2--5", False),
        ("-(5-9*2)", False),
        ("(9*2)+5=23", False),
        ("((9*2)+5", False),
        ("(9*2)+5)", False),
        ("9*02+5", False),
        ("9 2 5", False),
        ("9**2+5", False),
        ("٩*2+5", False),
        ("", False),
        ("()", False),
        ("(" * 40 + "9*2+5" + ")" * 40, False),
    ],
)
def test_the_verifier(text: str, right: bool) -> None:
    problem = COUNTDOWN.build("23 from 5 9 2", 3)
    assert COUNTDOWN.check(problem, text) is right


@given(st.text(alphabet="0123456789+-*() ", max_size=70))
@settings(max_examples=150, deadline=None)
def test_the_parser_agrees_with_python_or_refuses(text: str) -> None:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    value = value_of(text, numbers)
    if value is not None:
        assert value == eval(text.strip())


def test_a_four_number_problem_is_held_out_with_what_it_goes_through() -> None:
    rng = Random(0)
    for _ in range(20):
        problem = COUNTDOWN.draw(rng, 4, "train")
        target, lines = 0, problem.steps[:-1]
        for line in lines:
            if match := LINE.fullmatch(line):
                target = int(match[1])
                inner = f"{target} from {match[2]} {match[4]} {match[5]}"
                key = COUNTDOWN.key_of(inner)
                assert key in COUNTDOWN.parts(COUNTDOWN.body(problem))
                assert COUNTDOWN.parts(inner)[0] == key
        assert target
