"""What a run may claim follows from its numbers alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.report.verdict import CONTROL_IDS, Result, judge, wilson


def result(
    low: float, middle: float, high: float, control: int | None = None
) -> Result:
    return Result("a policy", middle, low, high, control)


RL = result(0.90, 0.92, 0.94)
BEFORE = result(0.20, 0.25, 0.30)
WEAK = [result(0.4, 0.5, 0.6, i) for i in CONTROL_IDS]


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        # By hand: 1.96^2 / (10 + 1.96^2) = 3.8416 / 13.8416 = 0.2775.
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.5, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_gives_the_known_interval(
    share: float, n: int, low: float, high: float
) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 10_000), st.floats(0.01, 0.99))
def test_wilson_bounds_are_the_shares_just_not_rejected(n: int, share: float) -> None:
    for bound in wilson(share, n):
        # The definition: the share lies 1.96 standard errors of the bound away.
        error = 1.96 * (bound * (1 - bound) / n) ** 0.5
        assert abs(share - bound) == pytest.approx(error, rel=1e-6, abs=1e-9)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_a_share(n: int, share: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


@pytest.mark.parametrize(("share", "n"), [(0.5, 0), (1.1, 5), (float("nan"), 5)])
def test_wilson_refuses_what_is_no_share(share: float, n: int) -> None:
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(share, n)


def test_elicitation_if_one_control_reaches_the_interval() -> None:
    controls = [*WEAK[:4], result(0.89, 0.91, 0.93, 5)]
    outcome, text = judge(RL, controls, BEFORE)
    assert outcome == "elicitation"
    assert "control 5 reaches it without RL" in text
    assert "not what it is able to do" in text


def test_elicitation_begins_exactly_at_the_lower_bound() -> None:
    assert judge(RL, [*WEAK, result(0.88, 0.90, 0.92, 1)])[0] == "elicitation"
    assert judge(RL, [*WEAK, result(0.88, 0.899, 0.92, 1)])[0] == "not separated"


def test_elicitation_names_every_control_that_reaches_it() -> None:
    controls = [*WEAK[1:3], *(result(0.95, 0.97, 0.99, i) for i in (1, 4, 5))]
    assert "controls 1, 4 and 5 reach it" in judge(RL, controls, BEFORE)[1]


def test_elicitation_does_not_wait_for_the_missing_controls() -> None:
    assert judge(RL, [result(0.9, 0.95, 0.99, 1)], BEFORE)[0] == "elicitation"


def test_overlap_is_no_claim_either_way() -> None:
    touching = [*WEAK[:4], result(0.80, 0.85, 0.90, 5)]
    outcome, text = judge(RL, touching, BEFORE)
    assert outcome == "not separated"
    assert "More test problems" in text
    clear = [*WEAK[:4], result(0.80, 0.85, 0.8999, 5)]
    assert judge(RL, clear, BEFORE)[0] == "beyond every control"


def test_beyond_needs_all_five() -> None:
    outcome, text = judge(RL, WEAK, BEFORE)
    assert outcome == "beyond every control"
    assert "clear of all five" in text
    for missing in CONTROL_IDS:
        outcome, text = judge(RL, [c for c in WEAK if c.control != missing], BEFORE)
        assert outcome == "incomplete"
        assert f"control {missing} was not run" in text


def test_two_rows_of_one_control_do_not_stand_for_another() -> None:
    assert judge(RL, [*WEAK[:4], WEAK[0]], BEFORE)[0] == "incomplete"


def test_without_controls_nothing_is_claimed() -> None:
    outcome, text = judge(RL, [], BEFORE)
    assert outcome == "incomplete"
    assert "no control was run" in text


def test_no_gain_unless_clear_of_the_starting_policy() -> None:
    assert judge(RL, WEAK, result(0.85, 0.88, 0.90))[0] == "no gain"
    assert judge(RL, WEAK, result(0.85, 0.88, 0.899))[0] == "beyond every control"
    outcome, text = judge(BEFORE, WEAK, RL)
    assert outcome == "no gain"
    assert "made the policy worse" in text


def test_only_the_strongest_verdict_goes_beyond_elicitation() -> None:
    texts = [
        judge(RL, [result(0.9, 0.95, 0.99, 1)], BEFORE)[1],
        judge(RL, [], BEFORE)[1],
        judge(RL, WEAK[:4], BEFORE)[1],
        judge(RL, [*WEAK[:4], result(0.8, 0.85, 0.9, 5)], BEFORE)[1],
        judge(RL, WEAK, RL)[1],
    ]
    assert not any("eyond every control" in text for text in texts)
