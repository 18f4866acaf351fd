"""Products: every step true, sums carried, no test product in a training one."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from r1lite.tasks.problem import split_of_text
from r1lite.tasks.product import LEVELS, PRODUCT, allowed, parts

STEP = re.compile(r"(\d+)\*(\d+)=(\d+)(?: sum (\d+))?")


def wrong_values(reasoning: str) -> int:
    """How many partial products and running sums are false given what precedes."""
    wrong, total = 0, 0
    for i, line in enumerate(reasoning.split("\n")):
        match = STEP.fullmatch(line)
        assert match and (match[4] is None) == (i == 0)
        partial = int(match[3])
        wrong += partial != int(match[1]) * int(match[2])
        written = int(match[4] or partial)
        wrong += written != total + partial
        total = written
    return wrong


def test_level_one_has_more_than_512_test_problems_counted_one_by_one() -> None:
    bodies = [
        f"{a}*{b}" for a in range(100, 1000) for b in range(2, 10) if allowed(a, b)
    ]
    counts = Counter(PRODUCT.split_of_body(body) for body in bodies)
    assert len(bodies) == 891 * 8
    assert counts["test"] >= 512 and counts["validation"] >= 512


@pytest.mark.parametrize("level", LEVELS)
def test_steps_and_answer_are_true(level: int) -> None:
    rng = Random(level)
    for _ in range(50):
        problem = PRODUCT.make(rng, level)
        first, second = map(int, PRODUCT.body(problem).split("*"))
        assert problem.answer == str(first * second)
        assert wrong_values(problem.reasoning) == 0
        assert problem.steps[-1].endswith(f" {problem.answer}")


@pytest.mark.parametrize("level", LEVELS)
def test_corruption_is_one_wrong_value_carried_to_a_wrong_answer(level: int) -> None:
    rng = Random(level)
    for _ in range(50):
        problem = PRODUCT.make(rng, level)
        reasoning, answer = PRODUCT.corrupt(problem, rng)
        assert wrong_values(reasoning) == 1
        assert not PRODUCT.check(problem, answer)
        assert reasoning.endswith(f" {answer}")


def test_a_product_is_test_when_its_sums_are_those_of_a_test_product() -> None:
    body = PRODUCT.body(PRODUCT.draw(Random(0), 1, "test"))
    first, second = body.split("*")
    assert body in parts(f"5{body}") and body in parts(f"{first}*3{second}")
    assert split_of_text(f"product {body}") == "test"
    assert PRODUCT.split_of_body(f"5{body}") == "test"
    assert PRODUCT.split_of_body(f"{first}*3{second}") == "test"


def test_no_problem_is_a_step_of_another() -> None:
    rng = Random(1)
    for level in LEVELS:
        for _ in range(50):
            for step in PRODUCT.make(rng, level).steps:
                first, second = map(int, step.split("=")[0].split("*"))
                assert not (first >= 100 and allowed(first, second))
