"""Figures of results. Each returns an <svg>, or None if nothing was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from r1lite.errors import R1Error
from r1lite.report.figure import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    POLICY_COLOURS,
    PURPLE,
    legend_above,
    line,
    name_of,
    panels,
    series,
    styled,
    to_svg,
)
from r1lite.report.files import Metrics
from r1lite.report.results import Evaluation
from r1lite.report.schema import Report
from r1lite.report.table import Row, headline_rows, policy_name, short

KIND_COLOURS = {"start": ORANGE, "control": PURPLE, "trained": BLUE}
_percent = FuncFormatter(lambda value, _: f"{value:.0f} %")


@styled
def headline(report: Report, family: str | None = None) -> str | None:
    """Accuracy with interval of every row of the headline table."""
    rows = headline_rows(report, family)
    if len(rows) < 2:
        return None
    figure, (axes,) = panels(height=0.8 + 0.42 * len(rows))
    draw_headline(axes, rows)
    alt = "; ".join(f"{r.title} {100 * r.result.accuracy:.1f} %" for r in rows)
    return to_svg(figure, name_of("headline", family or "all"), f"Accuracy: {alt}.")


def draw_headline(axes: Axes, rows: list[Row]) -> None:
    """Horizontal bars, first row on top, the trained policy's value as a line."""
    for place, row in enumerate(rows):
        e = row.result
        middle, low, high = 100 * e.accuracy, 100 * e.ci_low, 100 * e.ci_high
        axes.barh(place, middle, color=KIND_COLOURS[row.kind], height=0.62)
        axes.errorbar(
            middle,
            place,
            xerr=[[middle - low], [high - middle]],
            ecolor=INK,
            elinewidth=1.2,
            capsize=3,
        )
        length = "" if e.mean_length is None else f" in {e.mean_length:.0f} tokens"
        axes.annotate(
            f"{middle:.1f} %{length}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    if rows[-1].kind == "trained":
        low = 100 * rows[-1].result.ci_low
        axes.axvline(low, color=BLUE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [_wrap(row.title) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 155)
    axes.set_xticks(range(0, 101, 25))
    axes.xaxis.set_major_formatter(_percent)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _wrap(text: str, width: int = 24) -> str:
    """At most two lines of about `width` letters."""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    cut = cut if cut > 0 else width
    return f"{text[:cut]}\n{short(text[cut:].strip(), width)}"


@styled
def accuracy_by_level(report: Report, family: str) -> str | None:
    """Accuracy of each policy at each level of one family, with intervals."""
    line_ = report.headline
    policies = [r.result.policy for r in headline_rows(report) if r.kind != "control"]
    rows: dict[str, list[Evaluation]] = {
        p: [
            e
            for e in report.select(p, line_.decode, family=family)
            if e.level is not None
        ]
        for p in policies
    }
    levels = sorted(
        {e.level for found in rows.values() for e in found if e.level is not None}
    )
    if not levels:
        return None
    figure, (axes,) = panels()
    width = 0.8 / len(policies)
    for i, policy in enumerate(policies):
        found = {e.level: e for e in rows[policy]}
        shown = [level for level in levels if level in found]
        y = np.array([100 * found[v].accuracy for v in shown])
        down = y - np.array([100 * found[v].ci_low for v in shown])
        up = np.array([100 * found[v].ci_high for v in shown]) - y
        x = [levels.index(v) + (i + 0.5) * width - 0.4 for v in shown]
        axes.bar(
            x,
            y,
            0.92 * width,
            yerr=np.maximum(0, [down, up]),
            color=POLICY_COLOURS.get(policy, GREEN),
            error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2},
            label=short(policy_name(policy)),
        )
    best = [_best_control(report, family, level) for level in levels]
    if any(value is not None for value in best):
        axes.plot(
            [i for i, value in enumerate(best) if value is not None],
            [100 * value for value in best if value is not None],
            linestyle="none",
            marker="D",
            markersize=6,
            color=PURPLE,
            markeredgecolor=INK,
            label="best control",
        )
    axes.set_xticks(range(len(levels)), [str(v) for v in levels])
    axes.set_xlabel("level")
    axes.set_ylim(0, 105)
    axes.yaxis.set_major_formatter(_percent)
    axes.grid(False, axis="x")
    legend_above(axes, len(policies) + 1)
    alt = f"Accuracy on {family} by level, {levels[0]} to {levels[-1]}."
    return to_svg(figure, name_of("levels", family), alt)


def _best_control(report: Report, family: str, level: int) -> float | None:
    found = [
        e.accuracy
        for control in report.controls
        for e in report.select(*control.way, family=family)
        if e.level == level
    ]
    return max(found, default=None)


@styled
def readme_figure(report: Report, metrics: Metrics, path: Path | str) -> Path:
    """One PNG for the README: every accuracy, and reward and length during RL."""
    rows = headline_rows(report)
    if not rows:
        raise R1Error("report: no evaluations; run a recipe that evaluates, then draw")
    records = metrics.get(report.headline.after, [])
    figure = Figure(figsize=(10.4, 4.2), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.35, 1])
    left = figure.add_subplot(grid[:, 0])
    draw_headline(left, rows)
    left.set_title("Accuracy on held-out problems, 95 % intervals")
    for place, (key, title, colour) in enumerate(
        (("reward", "Reward during RL", BLUE), ("length", "Tokens per answer", GREEN))
    ):
        axes = figure.add_subplot(grid[place, 1])
        x, y = series(records, key)
        line(axes, x, y, colour)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("RL step")
    meaning = {"start": "before RL", "control": "control", "trained": "after RL"}
    present = {row.kind for row in rows}
    figure.legend(
        [Patch(color=KIND_COLOURS[kind]) for kind in meaning if kind in present],
        [meaning[kind] for kind in meaning if kind in present],
        loc="outside lower left",
        ncols=len(present),
    )
    figure.savefig(path, dpi=160, facecolor="white")
    return Path(path)
