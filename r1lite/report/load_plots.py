"""Figures of the experts' load. Each returns an <svg>, or None without data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from r1lite.report.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    legend_above,
    line,
    panels,
    series,
    styled,
    to_svg,
)
from r1lite.report.files import Metrics
from r1lite.report.table import short


@styled
def expert_load(metrics: Metrics, columns: int = 240) -> str | None:
    """Heat map of every expert's share of the tokens, 1 = its even share."""
    grid, starts = _load_grid(metrics, columns)
    if grid is None:
        return None
    times_even, layers, experts = grid
    figure, (axes,) = panels(height=min(6.0, 1.2 + 0.11 * layers * experts))
    image = axes.imshow(
        times_even,
        aspect="auto",
        cmap="coolwarm",
        vmin=0.0,
        vmax=2.0,
        interpolation="nearest",
    )
    axes.grid(False)
    for layer in range(1, layers):
        axes.axhline(layer * experts - 0.5, color="white", linewidth=2)
    for _, place in starts[1:]:
        axes.axvline(place - 0.5, color="black", linewidth=1)
    axes.set_xticks(
        [place for _, place in starts], [short(stage) for stage, _ in starts]
    )
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("left")
    middles = [(layer + 0.5) * experts - 0.5 for layer in range(layers)]
    if layers <= 16:
        axes.set_yticks(middles, [f"MoE {layer + 1}" for layer in range(layers)])
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1, 2], pad=0.02, aspect=25)
    bar.ax.set_yticklabels(["0", "even", "2x"])
    bar.outline.set_visible(False)
    alt = (
        f"Load of {experts} experts in {layers} MoE layers over training; at the end "
        f"the busiest takes {times_even[:, -1].max():.2f} times its even share."
    )
    return to_svg(figure, "expert-load", alt)


def _load_grid(
    metrics: Metrics, columns: int
) -> tuple[tuple[np.ndarray, int, int] | None, list[tuple[str, int]]]:
    """((layers * experts, records) loads as multiples of even, layers, experts)
    and where each stage starts. Records of another shape are passed over."""
    loads: list[np.ndarray] = []
    starts: list[tuple[str, int]] = []
    total = sum("load" in r for records in metrics.values() for r in records)
    stride = max(1, -(-total // columns))
    for stage, records in metrics.items():
        found = [_load(r) for r in records if "load" in r]
        kept = [x for x in found if x is not None][::stride]
        kept = [x for x in kept if x.shape == (loads or kept)[0].shape]
        if kept:
            starts.append((stage, len(loads)))
            loads += kept
    if len(loads) < 2:
        return None, []
    layers, experts = loads[0].shape
    return (np.stack([x.ravel() for x in loads], axis=1), layers, experts), starts


def _load(record: dict[str, Any]) -> np.ndarray | None:
    """(layers, experts) multiples of the even share; None if it cannot be read."""
    try:
        load = np.asarray(record["load"], dtype=float)
    except (ValueError, TypeError):
        return None
    if load.ndim != 2 or load.size == 0 or not np.isfinite(load).all():
        return None
    total = load.sum(axis=1, keepdims=True)
    return load / np.where(total > 0, total, 1.0) * load.shape[1]


@styled
def max_violation(metrics: Metrics) -> str | None:
    """MaxVio of each stage over its progress (arXiv 2408.15664, section 4.1)."""
    found = {stage: series(r, "max_violation") for stage, r in metrics.items()}
    found = {stage: xy for stage, xy in found.items() if len(xy[0]) > 1}
    if not found:
        return None
    figure, (axes,) = panels()
    colours = [BLUE, ORANGE, GREEN, PURPLE]
    for i, (stage, (x, y)) in enumerate(found.items()):
        progress = 100 * (x - x[0]) / max(1.0, x[-1] - x[0])
        line(axes, progress, y, colours[i % len(colours)], short(stage))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("progress of the stage")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_ylabel("MaxVio")
    legend_above(axes, min(4, len(found)))
    ends = "; ".join(f"{s} {y[0]:.2f} to {y[-1]:.2f}" for s, (_, y) in found.items())
    return to_svg(figure, "max-violation", f"Largest load over even: {ends}.")
