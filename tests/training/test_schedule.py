"""Schedules by tokens, against V3's published numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.errors import R1Error
from r1lite.training.schedule import (
    V3_PHASES,
    V3_RAMP,
    BatchRamp,
    Phase,
    batch_plan,
    phase_scale,
)

T = 1e12


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (0, 2.2e-4),
        (9.99 * T, 2.2e-4),
        (12.15 * T, 1.21e-4),  # the middle of the cosine
        (14.31 * T, 2.2e-5),
        (14.62 * T, 2.2e-5),
        (14.7 * T, 7.3e-6),
        (14.8 * T, 7.3e-6),
    ],
)
def test_v3(tokens: float, rate: float) -> None:
    found = 2.2e-4 * phase_scale(V3_PHASES, tokens / (14.8 * T))
    assert found == pytest.approx(rate, rel=0.005)


def test_phases_sum_to_the_whole() -> None:
    assert sum(p.share for p in V3_PHASES) == pytest.approx(1)
    with pytest.raises(R1Error, match=r"^phases"):
        phase_scale((), 0.5)
    assert phase_scale((Phase(share=1, end=0.3),), 2.0) == 0.3


def test_v3_batches() -> None:
    plan = batch_plan(1_000_000, 150, V3_RAMP)
    assert plan[0] == 30 and max(plan) == 150
    grown = next(i for i, n in enumerate(plan) if n == 150)
    assert sum(plan[:grown]) / 1_000_000 == pytest.approx(0.0317, abs=0.001)


@given(
    st.integers(1, 5000),
    st.integers(1, 64),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_no_row_is_lost(rows: int, batch: int, start: float, share: float) -> None:
    plan = batch_plan(rows, batch, BatchRamp(start=start, share=share))
    assert sum(plan) == rows and min(plan) >= 1 and max(plan) <= batch
    assert plan[:-1] == sorted(plan[:-1])


def test_without_a_ramp_batches_are_equal() -> None:
    assert batch_plan(10, 4, BatchRamp()) == [4, 4, 2]
    with pytest.raises(R1Error, match=r"^ramp: start 0"):
        batch_plan(10, 4, BatchRamp(start=0.0))
