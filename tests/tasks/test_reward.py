"""The rule-based reward: equal to a hand-written table, deaf to any text."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from r1lite.tasks import FAMILIES, Problem
from r1lite.tasks.reward import RewardConfig, Score, score


@dataclass(frozen=True)
class Said:
    answer: str | None
    well_formed: bool = True
    has_think: bool = True


PROBLEM = FAMILIES["chain"].build("3+4*2", 3)  # 4
BOTH = RewardConfig(accuracy=1.0, format=0.5, format_requires_think=True)
EITHER = RewardConfig(accuracy=1.0, format=0.5)


@pytest.mark.parametrize(
    ("said", "config", "expected"),
    [
        (Said("4"), BOTH, Score(1, 1, 1.5)),
        (Said(" 4\n"), BOTH, Score(1, 1, 1.5)),
        (Said("4", has_think=False), BOTH, Score(1, 0, 1.0)),
        (Said("4", has_think=False), EITHER, Score(1, 1, 1.5)),
        (Said("5"), EITHER, Score(0, 1, 0.5)),
        (Said("4", well_formed=False), EITHER, Score(1, 0, 1.0)),
        (Said(None, well_formed=False), BOTH, Score(0, 0, 0.0)),
        (Said("14"), EITHER, Score(0, 1, 0.5)),
        (Said("4 4"), EITHER, Score(0, 1, 0.5)),
        (Said("04"), EITHER, Score(0, 1, 0.5)),
        (Said(""), EITHER, Score(0, 1, 0.5)),
    ],
)
def test_the_table(said: Said, config: RewardConfig, expected: Score) -> None:
    assert score(PROBLEM, said, config) == expected


def every_problem() -> list[Problem]:
    rng = Random(0)
    return [f.make(rng, f.levels[-1]) for f in FAMILIES.values()]


@given(st.text(max_size=200) | st.text(alphabet="0123456789+-*()=. \x00", max_size=90))
@settings(max_examples=100, deadline=None)
def test_no_text_raises_and_no_random_text_is_paid(text: str) -> None:
    for problem in every_problem():
        result = score(problem, Said(text), BOTH)
        assert result.accuracy == float(FAMILIES[problem.family].check(problem, text))
        if text.strip() != problem.answer and problem.family != "countdown":
            assert result.total == 0.5


def test_the_right_answer_of_every_family_is_paid() -> None:
    for problem in every_problem():
        assert score(problem, Said(problem.answer), BOTH).total == 1.5


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValidationError):
        RewardConfig(accuracy=-1.0)
