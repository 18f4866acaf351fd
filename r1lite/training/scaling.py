"""Scaling laws: a loss that falls as a power of size, fitted with an honest error.

L(N) = E + A / N^a (Hoffmann et al., arXiv 2203.15556, use a second such term for
the tokens D). For a fixed exponent E and A are ordinary least squares, so the fit
is one search over exponents: no start values, the same answer every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r1lite.errors import R1Error

Floats = NDArray[np.float64]
EXPONENTS = np.linspace(0.01, 2.0, 200)  # 0.01 apart, then searched more finely


@dataclass(frozen=True)
class PowerLaw:
    """loss(n) = floor + factor / n ** exponent, in nats; error: root mean square."""

    floor: float
    factor: float
    exponent: float
    error: float

    def __call__(self, n: float) -> float:
        """The loss at size `n` (parameters, tokens or FLOPs, as it was fitted)."""
        return float(self.floor + self.factor / n**self.exponent)


def fit(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The power law with the least squared error, floor and factor not negative.

    Three sizes always fit exactly, which proves nothing: use more, or `interval`.

    Raises:
        R1Error: fewer than three different sizes.
    """
    x, y = np.asarray(sizes, float), np.asarray(losses, float)
    if len(x) != len(y) or len(np.unique(x)) < 3:
        raise R1Error(
            "scaling: a power law has three unknowns; give losses at three or more "
            "different sizes"
        )
    unit = float(np.exp(np.log(x).mean()))  # keeps n ** exponent near 1
    coarse = _best(x / unit, y, EXPONENTS)[1]
    finer = np.linspace(max(1e-3, coarse - 0.01), coarse + 0.01, 41)
    squares, exponent, floor, factor = _best(x / unit, y, finer)
    error = float(np.sqrt(squares / len(x)))
    return PowerLaw(floor, factor * unit**exponent, exponent, error)


def _best(x: Floats, y: Floats, exponents: Floats) -> tuple[float, ...]:
    """(squared error, exponent, floor, factor) of the best fit among `exponents`."""
    term = x ** -exponents[:, None]  # (exponents, sizes)
    spread = term - term.mean(1, keepdims=True)
    slope = spread @ y / (spread**2).sum(1)
    floor = y.mean() - slope * term.mean(1)
    # A loss that grows with size: the best law is a constant. A floor below 0: none.
    through = term @ y / (term**2).sum(1)
    slope, floor = (
        np.where(slope < 0, 0.0, np.where(floor < 0, through, slope)),
        np.where(slope < 0, y.mean(), np.maximum(floor, 0.0)),
    )
    squares = ((floor[:, None] + slope[:, None] * term - y) ** 2).sum(1)
    i = int(squares.argmin())
    return float(squares[i]), float(exponents[i]), float(floor[i]), float(slope[i])


def interval(
    runs: Sequence[tuple[float, float]],
    value: Callable[[PowerLaw], float],
    draws: int = 200,
    seed: int = 0,
    level: float = 0.9,
) -> tuple[float, float]:
    """Bootstrap interval of `value(law)` over runs drawn again within each size.

    Args:
        runs: (size, loss), several of each size: the spread between seeds is the
            only error that is known here.
        level: share of the draws inside.

    Raises:
        R1Error: a size has a single run.
    """
    by_size: dict[float, list[float]] = {}
    for size, loss in runs:
        by_size.setdefault(size, []).append(loss)
    if min(map(len, by_size.values()), default=0) < 2:
        raise R1Error("scaling: a size has one run; give two seeds or more of each")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        losses = [float(rng.choice(v, len(v)).mean()) for v in by_size.values()]
        found.append(value(fit(list(by_size), losses)))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def leave_one_out(sizes: Sequence[float], losses: Sequence[float]) -> list[float]:
    """For each size, the loss that the other sizes predict, minus the real one.

    The first and the last are extrapolated, the others are between known sizes.
    """
    left = []
    for i, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
        rest = [j for j in range(len(sizes)) if j != i]
        law = fit([sizes[j] for j in rest], [losses[j] for j in rest])
        left.append(law(size) - loss)
    return left
