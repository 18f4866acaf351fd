"""Expressions: rewriting is true, and held-out ones never appear on the way."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import product
from random import Random

import pytest

from r1lite.tasks.chain import apply
from r1lite.tasks.expression import EXPRESSION, LEVELS


def slow_value(body: str) -> int:
    """Python's parser and plain integers, reduced once at the end."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        return left - right if isinstance(node.op, ast.Sub) else left * right

    return value(ast.parse(body, mode="eval").body) % 10


def test_level_two_has_more_than_512_test_problems_counted_one_by_one() -> None:
    counts: Counter[str] = Counter()
    digits, ops = "0123456789", "+-*"
    for a, p, b, q, c in product(digits, ops, digits, ops, digits):
        for body in (f"({a}{p}{b}){q}{c}", f"{a}{p}({b}{q}{c})"):
            counts[EXPRESSION.split_of_body(body)] += 1
    assert sum(counts.values()) == 18000
    assert counts["test"] >= 512 and counts["validation"] >= 512


@pytest.mark.parametrize("level", LEVELS)
def test_answers_agree_with_plain_integers(level: int) -> None:
    rng = Random(level)
    for _ in range(40):
        problem = EXPRESSION.make(rng, level)
        body = EXPRESSION.body(problem)
        assert problem.answer == str(slow_value(body))
        assert len(problem.steps) == level == sum(c in "+-*" for c in body)
        for step in problem.steps[:-1]:
            assert str(slow_value(step.split(" ")[1])) == problem.answer


def test_no_held_out_expression_is_read_in_training() -> None:
    rng = Random(0)
    for level in LEVELS[1:]:
        for _ in range(30):
            problem = EXPRESSION.draw(rng, level, "train")
            for step in problem.steps[:-2]:  # the last two write < 2 operations
                rewritten = step.split(" ")[1]
                assert EXPRESSION.split_of_body(rewritten) == "train"


def test_every_expression_has_a_part_that_decides() -> None:
    rng = Random(5)
    for level in LEVELS:
        for _ in range(40):
            assert EXPRESSION.parts(EXPRESSION.sample(rng, level))


@pytest.mark.parametrize("level", LEVELS)
def test_corruption_is_one_wrong_step_carried_to_a_wrong_answer(level: int) -> None:
    rng = Random(level)
    for _ in range(40):
        problem = EXPRESSION.make(rng, level)
        reasoning, answer = EXPRESSION.corrupt(problem, rng)
        lines = reasoning.split("\n")
        facts = [line.split(" ")[0] for line in lines]
        wrong = [f for f in facts if f[4] != str(apply(int(f[0]), f[1], int(f[2])))]
        assert len(wrong) == 1 and len(lines) == level
        assert not EXPRESSION.check(problem, answer) and lines[-1][4] == answer
