"""Figures of the data. Each returns an <svg>, or None if nothing was measured."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter

from r1lite.report.figure import (
    BLUE,
    GREEN,
    GREY,
    POLICY_COLOURS,
    legend_above,
    panels,
    styled,
    to_svg,
)
from r1lite.report.schema import Report
from r1lite.report.table import policy_name, short

_percent = FuncFormatter(lambda value, _: f"{value:.0f} %")


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
    axes.set_yticks(place, [short(d.name) for d in rows])
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
    axes.set_yticks(range(len(values)), [short(domain) for domain in values])
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte, lower is better")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    legend_above(axes, len(policies))
    alt = f"Held-out bits per byte of {len(policies)} policies in {len(values)} domains"
    return to_svg(figure, "bits-per-byte", f"{alt}; the table below has the numbers.")
