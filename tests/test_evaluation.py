"""Evaluation: problem sets, summaries and pass@k by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from support.rollouts import answered

from r1lite.errors import R1Error
from r1lite.evaluation import (
    EvalConfig,
    by_level,
    majority,
    pass_at_k,
    pooled_accuracy,
    problem_set,
)
from r1lite.tasks import split_of
from r1lite.training.rollout import Rollout


def test_by_level_counts_by_hand() -> None:
    items = [
        answered(3, True, 4),
        answered(3, False, 6, think=False),
        answered(4, True, 10),
        answered(4, True, 20),
    ]
    three, four = by_level(items)
    assert (three.level, three.n, three.accuracy) == (3, 2, 0.5)
    assert (three.mean_length, three.think_share, three.format) == (5, 0.5, 0.5)
    assert (four.level, four.accuracy, four.mean_length) == (4, 1.0, 15)
    assert pooled_accuracy([three, four]) == 0.75


def test_samples_of_one_problem_count_as_one() -> None:
    items = [answered(3, r, 4) for r in (False, True, False, False)]
    (result,) = by_level(items, n=2)
    assert (result.n, result.accuracy, result.pass_k) == (2, 0.25, 0.5)


def voted(*answers: str | None) -> list[Rollout]:
    """Samples of one problem whose right answer is 1."""
    items = [answered(3, a == "1", 4) for a in answers]
    return [
        replace(r, parsed=replace(r.parsed, answer=a))
        for r, a in zip(items, answers, strict=True)
    ]


@pytest.mark.parametrize(
    ("answers", "want"),
    [
        (("1", "2", "1"), 1.0),
        (("2", "2", "1"), 0.0),
        (("1", "2"), 1.0),  # a tie: the first one
        (("2", "1"), 0.0),
        ((None, None, "1"), 1.0),  # no answer is no vote
        ((None, None), 0.0),
    ],
)
def test_majority_by_hand(answers: tuple[str | None, ...], want: float) -> None:
    assert majority(voted(*answers)) == want


def test_votes_can_be_right_more_often_than_samples_and_less() -> None:
    items = [*voted("1", "1", "3"), *voted("2", "2", "1")]
    (result,) = by_level(items, n=3)
    assert (result.accuracy, result.cons_k, result.pass_k) == (0.5, 0.5, 1.0)


def test_pass_at_k_equals_counting_every_draw() -> None:
    for correct in range(6):
        flags = [True] * correct + [False] * (5 - correct)
        draws = list(combinations(flags, 3))
        want = sum(any(d) for d in draws) / len(draws)
        assert pass_at_k(5, correct, 3) == pytest.approx(want)


def test_problem_sets_are_unique_held_out_and_the_same_twice() -> None:
    config = EvalConfig(levels=("chain/3", "chain/4"))
    found = problem_set(config, "test", 40)
    assert len({p.key for p in found}) == 80
    assert {split_of(p) for p in found} == {"test"}
    assert found == problem_set(config, "test", 40)
    assert not {p.key for p in found} & {
        p.key for p in problem_set(config, "validation", 40)
    }


def test_asking_for_more_than_there_is_says_how_many() -> None:
    with pytest.raises(R1Error, match=r"only \d+ unique test"):
        problem_set(EvalConfig(levels=("chain/3",)), "test", 5000)
