"""Scaling fits: known laws found again, intervals that hold, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from r1lite.errors import R1Error
from r1lite.training.scaling import PowerLaw, fit, interval, leave_one_out

SIZES = [1e5, 3e5, 1e6, 3e6, 1e7]


@pytest.mark.parametrize(
    "law",
    [PowerLaw(1.7, 400.0, 0.35, 0), PowerLaw(0.0, 20.0, 0.1, 0)],
)
def test_a_known_law_is_found(law: PowerLaw) -> None:
    found = fit(SIZES, [law(n) for n in SIZES])
    assert found.exponent == pytest.approx(law.exponent, abs=0.006)
    assert found.floor == pytest.approx(law.floor, abs=0.06)
    assert found(1e8) == pytest.approx(law(1e8), abs=0.05)
    assert found.error < 1e-3


def test_a_loss_that_does_not_fall_is_a_constant() -> None:
    found = fit([1, 2, 3], [1.0, 1.1, 1.2])
    assert found.factor == 0 and found.floor == pytest.approx(1.1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    law, rng, hits = PowerLaw(1.7, 400.0, 0.35, 0), np.random.default_rng(0), 0
    for trial in range(40):
        runs = [(n, law(n) + rng.normal(0, 0.02)) for n in SIZES for _ in range(5)]
        low, high = interval(runs, lambda f: f(3e7), draws=60, seed=trial)
        assert low < high
        hits += low <= law(3e7) <= high
    assert 26 <= hits <= 40


def test_leave_one_out() -> None:
    law = PowerLaw(1.7, 400.0, 0.35, 0)
    losses = [law(n) for n in SIZES]
    assert np.abs(leave_one_out(SIZES, losses)).max() < 0.03
    losses[2] += 0.5
    left = leave_one_out(SIZES, losses)
    assert left[2] == pytest.approx(-0.5, abs=0.03)


def test_refusals() -> None:
    with pytest.raises(R1Error, match="three unknowns"):
        fit([1, 2], [1.0, 2.0])
    with pytest.raises(R1Error, match="three unknowns"):
        fit([1, 2, 2], [1.0, 2.0, 2.0])
    with pytest.raises(R1Error, match="one run"):
        interval([(1, 1.0), (2, 1.0), (3, 1.0)], lambda f: f.floor)
