"""Language consistency and overlength by hand."""

from __future__ import annotations

import pytest

from r1lite.training.shaping import language_consistency, overlong_penalty

GERMAN = {"zuerst", "dann", "also"}


@pytest.mark.parametrize(
    ("reasoning", "want"),
    [
        ("zuerst 3+4=7\ndann 7*2=4", 1.0),
        ("Zuerst 3+4=7\nthen 7*2=4", 0.5),
        ("first 3+4=7\nthen 7*2=4\nthen 4-1=3\ndann 3*1=3", 0.25),
        ("3+4=7", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_share_of_words_in_the_questions_language(
    reasoning: str | None, want: float
) -> None:
    assert language_consistency(reasoning, GERMAN) == want


@pytest.mark.parametrize(
    ("length", "want"), [(1, 0), (48, 0), (52, -0.25), (56, -0.5), (64, -1), (90, -1)]
)
def test_overlength_is_a_slope_to_minus_one(length: int, want: float) -> None:
    assert overlong_penalty(length, 64, 16) == pytest.approx(want)
    assert overlong_penalty(length, 64, 0) == 0
