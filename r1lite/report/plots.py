"""Figures of results. Each returns an <svg>, or None if nothing was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from r1lite.errors import R1Error
from r1lite.report.figure import (
    BLUE,
    GREEN,
    GREY,
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
from r1lite.report.table import Row, headline_rows, policy_name

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
    rest = text[cut:].strip()
    return f"{text[:cut]}\n{rest if len(rest) <= width else rest[: width - 1] + '…'}"


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
            label=policy_name(policy),
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
def mixture(report: Report) -> str | None:
    """Share of tokens asked for and measured, by domain."""
    rows = report.mixture
    if not rows:
        return None
    figure, (axes,) = panels(height=0.9 + 0.5 * len(rows))
    place = np.arange(len(rows))
    asked = [100 * d.asked for d in rows]
    measured = [100 * d.measured for d in rows]
    axes.barh(place - 0.19, asked, 0.36, color=GREY, label="asked")
    axes.barh(place + 0.19, measured, 0.36, color=BLUE, label="measured")
    for offset, values in ((-0.19, asked), (0.19, measured)):
        for i, value in enumerate(values):
            axes.annotate(
                f"{value:.1f} %",
                (value, i + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(place, [d.name for d in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(*asked, *measured, 1.0))
    axes.xaxis.set_major_formatter(_percent)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    legend_above(axes, 2)
    alt = "; ".join(f"{d.name} {a:.1f} %" for d, a in zip(rows, measured, strict=True))
    return to_svg(figure, "mixture", f"Measured share of tokens: {alt}.")


@styled
def bits_per_byte(report: Report) -> str | None:
    """Held-out bits per byte of every policy, by domain; lower is better."""
    values = {d.domain: d.bits_per_byte for d in report.held_out}
    policies = list(dict.fromkeys(p for found in values.values() for p in found))
    if not any(v is not None for found in values.values() for v in found.values()):
        return None
    figure, (axes,) = panels(height=0.9 + 0.5 * len(values))
    height = 0.8 / len(policies)
    for i, policy in enumerate(policies):
        places = [k + (i + 0.5) * height - 0.4 for k in range(len(values))]
        widths = [found.get(policy) or 0.0 for found in values.values()]
        colour = POLICY_COLOURS.get(policy, GREEN)
        axes.barh(places, widths, 0.9 * height, color=colour, label=policy_name(policy))
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte, lower is better")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    legend_above(axes, len(policies))
    alt = f"Held-out bits per byte of {len(policies)} policies in {len(values)} domains"
    return to_svg(figure, "bits-per-byte", f"{alt}; the table below has the numbers.")


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
    figure.savefig(path, dpi=160, facecolor="white")
    return Path(path)
