"""Figures over training steps. Each returns an <svg>, or None without data."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from r1lite.report.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Records,
    legend_above,
    line,
    name_of,
    panels,
    series,
    styled,
    to_svg,
)
from r1lite.report.table import amount

_short = FuncFormatter(lambda value, _: amount(value).replace(".00", ""))


@styled
def loss(stage: str, records: Records) -> str | None:
    """Training loss of one stage over its tokens (over steps without tokens)."""
    by = "tokens" if len(series(records, "loss", "tokens")[0]) else "step"
    x, y = series(records, "loss", by)
    if len(x) < 2:
        return None
    figure, (axes,) = panels()
    line(axes, x, y, BLUE)
    axes.set_xlabel("tokens" if by == "tokens" else "step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(_short)
    _fit(axes, y)
    alt = f"Training loss of {stage}: {y[0]:.2f} at the start, {y[-1]:.2f} at the end."
    return to_svg(figure, name_of("loss", stage), alt)


def _fit(axes: Axes, y: np.ndarray) -> None:
    """Keep the first wild values of a loss from flattening all the rest."""
    top = max(float(np.quantile(y, 0.995)), float(y[-1]))
    low, high = float(y.min()), float(y.max())
    if high > low + 1.5 * (top - low) > low:
        axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))


@styled
def optimisation(stage: str, records: Records) -> str | None:
    """Learning rate and gradient norm of one stage."""
    found = [
        (title, *series(records, key))
        for key, title in (("lr", "learning rate"), ("grad_norm", "gradient norm"))
    ]
    found = [(title, x, y) for title, x, y in found if len(x) > 1]
    if not found:
        return None
    figure, axes = panels(1, len(found), height=2.4)
    for each, (title, x, y) in zip(axes, found, strict=True):
        line(each, x, y, GREEN)
        each.set_title(title)
        each.set_xlabel("step")
        each.xaxis.set_major_locator(MaxNLocator(4))
    shown = " and ".join(title for title, _, _ in found)
    return to_svg(
        figure, name_of("optimisation", stage), f"{stage}: {shown} over steps."
    )


@styled
def rewards(records: Records) -> str | None:
    """Reward, accuracy and format of the sampled answers over RL steps."""
    wanted = (("accuracy", BLUE), ("format", GREEN), ("reward", ORANGE))
    found = [(key, colour, *series(records, key)) for key, colour in wanted]
    found = [f for f in found if len(f[2]) > 1]
    if not found:
        return None
    figure, (axes,) = panels()
    for key, colour, x, y in found:
        line(axes, x, y, colour, key)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("RL step")
    axes.set_ylabel("mean over samples")
    legend_above(axes, len(found))
    ends = "; ".join(f"{k} {y[0]:.2f} to {y[-1]:.2f}" for k, _, _, y in found)
    return to_svg(figure, "rewards", f"Sampled answers during RL: {ends}.")


@styled
def response_length(records: Records) -> str | None:
    """Mean tokens of a sampled answer over RL steps."""
    x, y = series(records, "length")
    if len(x) < 2:
        return None
    figure, (axes,) = panels()
    line(axes, x, y, BLUE)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("RL step")
    axes.set_ylabel("tokens per answer")
    alt = f"Length of sampled answers: {y[0]:.1f} tokens at first, {y[-1]:.1f} at last."
    return to_svg(figure, "response-length", alt)


@styled
def rl_health(records: Records) -> str | None:
    """What tells early that RL goes wrong: entropy, KL, clipping, dead groups."""
    wanted = {
        "entropy": "entropy (nats)",
        "kl": "KL to the reference",
        "clip_frac": "share of clipped tokens",
        "frac_zero_std": "share of groups without signal",
    }
    found = [(title, *series(records, key)) for key, title in wanted.items()]
    found = [f for f in found if len(f[1]) > 1]
    if not found:
        return None
    rows = (len(found) + 1) // 2
    figure, axes = panels(rows, 2, height=0.4 + 1.9 * rows)
    for each, (title, x, y) in zip(axes, found, strict=False):
        line(each, x, y, PURPLE)
        each.set_title(title)
        each.xaxis.set_major_locator(MaxNLocator(4))
    for spare in axes[len(found) :]:
        spare.set_visible(False)
    shown = ", ".join(title for title, _, _ in found)
    return to_svg(figure, "rl-health", f"During RL, over steps: {shown}.")
