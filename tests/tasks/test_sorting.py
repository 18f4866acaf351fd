"""Sorting: selection that is right, corrupted once, and split by its numbers."""

from __future__ import annotations

from random import Random

import pytest

from r1lite.tasks.sorting import LEVELS, SORTING


def false_picks(problem_body: str, reasoning: str) -> int:
    """How many steps pick a number that is not the smallest left; copies checked."""
    rest, wrong = problem_body.split(), 0
    for line in reasoning.split("\n"):
        chosen, after = line.split(": ")
        wrong += chosen != min(rest, key=int)
        rest.remove(chosen)
        assert after.split() == rest
    assert len(rest) == 1
    return wrong


@pytest.mark.parametrize("level", LEVELS)
def test_steps_select_and_the_answer_is_sorted(level: int) -> None:
    rng = Random(level)
    for _ in range(40):
        problem = SORTING.make(rng, level)
        body = SORTING.body(problem)
        numbers = [int(n) for n in body.split()]
        assert len(set(numbers)) == level and numbers != sorted(numbers)
        assert problem.answer == " ".join(map(str, sorted(numbers)))
        assert false_picks(body, problem.reasoning) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_corruption_is_one_wrong_pick(level: int) -> None:
    rng = Random(level)
    for _ in range(40):
        problem = SORTING.make(rng, level)
        reasoning, answer = SORTING.corrupt(problem, rng)
        assert false_picks(SORTING.body(problem), reasoning) == 1
        assert not SORTING.check(problem, answer)
        assert sorted(answer.split()) == sorted(problem.answer.split())


def test_order_does_not_make_another_problem() -> None:
    first, second = SORTING.build("45 12 83", 3), SORTING.build("83 45 12", 3)
    assert first.key == second.key and first.question != second.question


def test_the_lists_that_remain_share_the_split() -> None:
    rng = Random(9)
    for split in ("train", "validation", "test"):
        problem = SORTING.draw(rng, 7, split)
        for step in problem.steps[:-2]:
            rest = step.split(": ")[1]
            assert len(rest.split()) < 3 or SORTING.split_of_body(rest) == split
