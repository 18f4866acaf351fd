"""Chains: counted exactly, never contained in what trains, corrupted once."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import pytest

from r1lite.tasks.chain import CHAIN, LEVELS, apply
from r1lite.tasks.problem import split_of_text


def slow_value(body: str) -> int:
    """Left to right with Python's own integers, reduced once at the end."""
    value = int(body[0])
    for i in range(1, len(body), 2):
        digit = int(body[i + 1])
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[body[i]]
    return value % 10


def test_level_three_has_more_than_512_test_problems_counted_one_by_one() -> None:
    digits, ops = "0123456789", "+-*"
    bodies = ("".join(p) for p in product(digits, ops, digits, ops, digits))
    counts = Counter(CHAIN.split_of_body(body) for body in bodies)
    assert sum(counts.values()) == 9000
    assert counts["test"] >= 512 and counts["validation"] >= 512
    assert 0.78 < counts["train"] / 9000 < 0.82


@pytest.mark.parametrize("level", LEVELS)
def test_answers_agree_with_plain_integers(level: int) -> None:
    rng = Random(level)
    for _ in range(50):
        problem = CHAIN.make(rng, level)
        body = CHAIN.body(problem)
        assert problem.answer == str(slow_value(body))
        assert len(problem.steps) == level - 1
        assert problem.steps[-1].endswith(f"={problem.answer}")


def test_operations_stay_digits() -> None:
    assert (apply(7, "+", 5), apply(2, "-", 5), apply(7, "*", 6)) == (2, 7, 2)


def test_no_held_out_chain_stands_inside_a_training_chain() -> None:
    rng = Random(0)
    for level in LEVELS:
        for _ in range(30):
            body = CHAIN.body(CHAIN.draw(rng, level, "train"))
            for start in range(0, len(body), 2):
                for end in range(start + 5, len(body) + 1, 2):
                    assert CHAIN.split_of_body(body[start:end]) == "train"


def test_a_longer_chain_is_test_when_it_contains_a_test_chain() -> None:
    rng = Random(3)
    body = CHAIN.body(CHAIN.draw(rng, 3, "test"))
    assert split_of_text(f"chain {body}") == "test"
    assert CHAIN.split_of_body(body + "+1-2*3") == "test"
    assert CHAIN.split_of_body("1-2*" + body) == "test"


@pytest.mark.parametrize("level", LEVELS)
def test_corruption_is_one_wrong_step_carried_to_a_wrong_answer(level: int) -> None:
    rng = Random(level)
    for _ in range(50):
        problem = CHAIN.make(rng, level)
        reasoning, answer = CHAIN.corrupt(problem, rng)
        assert not CHAIN.check(problem, answer)
        value, wrong = problem.question.removeprefix(CHAIN.prefix)[0], 0
        for step in reasoning.split("\n"):
            assert step[0] == value
            wrong += step[4] != str(apply(int(step[0]), step[1], int(step[2])))
            value = step[4]
        assert wrong == 1 and answer == value
