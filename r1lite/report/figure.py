"""From numbers to a figure: clean series, one look, SVG that may be inlined."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Records = Sequence[dict[str, Any]]

# Read well on white and on dark ground; told apart by people who see no red.
BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#2f86d6",
    "#d97a1f",
    "#1f9e77",
    "#9a6fd0",
    "#8a919c",
)
POLICY_COLOURS = {"untrained": "#b9bec6", "base": GREY, "sft": ORANGE, "grpo": BLUE}
# Stands for the page's own text colour; replaced after drawing.
INK = "#010203"
WIDTH = 5.4
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    # A family named "a$b$" must not be taken for mathematics.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


P = ParamSpec("P")
T = TypeVar("T")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Give everything that `draw` makes the report's look, and nothing else."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def panels(
    rows: int = 1, columns: int = 1, height: float = 3.0, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` axes, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an <svg> element for a page that holds several of them.

    name: prefix that keeps the ids of one figure apart from another's.
    alt: what the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    salt: dict[Any, Any] = {"svg.hashsalt": name}
    with matplotlib.rc_context(salt):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans', ", "")
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    view = re.search(r'viewBox="[^"]*"', opening.group())
    head = (
        f'<svg {view.group() if view else ""} role="img" aria-label="{_escape(alt)}" '
        'xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + svg[opening.end() :]


def _escape(text: str) -> str:
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(mark, entity)
    return text


def series(
    records: Records, key: str, x: str = "step"
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the records whose `key` and `x` are finite numbers, both (n,)."""
    pairs = [(r.get(x), r.get(key)) for r in records]
    kept = [(a, b) for a, b in pairs if _is_number(a) and _is_number(b)]
    points = np.array(kept, dtype=float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def line(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    colour: str,
    label: str | None = None,
    points: int = 400,
) -> None:
    """Draw the mean of neighbours over a faint line of the values themselves.

    Longer series are first averaged to `points` values, to keep the page small.
    """
    if len(x) > points:
        parts = np.array_split(np.arange(len(x)), points)
        x = np.array([x[p].mean() for p in parts])
        y = np.array([y[p].mean() for p in parts])
    if len(x) < 12:
        axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
        return
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    # Near the ends the window is too short to smooth; the faint line goes on.
    whole = slice(len(x) // 80, len(x) - len(x) // 80)
    axes.plot(x[whole], smooth(y)[whole], color=colour, label=label, linewidth=1.8)


def smooth(y: np.ndarray) -> np.ndarray:
    """Mean over a window of about a twentieth of the series, shorter at its ends."""
    half = max(1, len(y) // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    # The window stays symmetric, so that a slope at the ends is not flattened.
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def name_of(*words: str) -> str:
    """Words as an id: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def legend_above(axes: Axes, columns: int) -> None:
    """A legend on one line over the axes, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0)
