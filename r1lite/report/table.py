"""Rows and words shared by the page, the terminal and the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from r1lite.report.results import Control, Evaluation, SeedResult, median_and_range
from r1lite.report.schema import Report

NAMES = {"untrained": "Untrained", "base": "Base", "sft": "SFT", "grpo": "GRPO"}
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One line of the headline table."""

    kind: Literal["start", "control", "trained"]
    name: str
    how: str
    result: Evaluation
    control: Control | None = None
    budget_tokens: int | None = None
    budget_seconds: float | None = None

    @property
    def title(self) -> str:
        """The name with the control's number in front."""
        return f"({self.control.id}) {self.name}" if self.control else self.name


def headline_rows(report: Report, family: str | None = None) -> list[Row]:
    """Starting policies, then the controls, then the trained policy.

    `family` None pools all families. Policies without an evaluation on the
    headline's split are left out, and so are those that `r1_rows` shows.
    """
    line = report.headline
    elsewhere = {p.policy for p in report.r1} - {line.before}
    starts = []
    for policy in dict.fromkeys(e.policy for e in report.evaluations):
        is_control = any(c.way == (policy, line.decode, False) for c in report.controls)
        found = report.pooled(policy, line.decode, family=family)
        if found is None or policy == line.after or policy in elsewhere:
            continue
        if policy == line.before or not is_control:
            starts.append(Row("start", policy_name(policy), line.decode, found))
    controls = [
        Row(
            "control",
            control.description,
            how(control.decode, control.forced_think),
            found,
            control,
            control.budget_tokens,
            control.budget_seconds,
        )
        for control, found in sorted(
            report.control_results(family), key=lambda pair: pair[0].id
        )
    ]
    after = report.after(family)
    if after is None:
        return [*starts, *controls]
    trained = Row(
        "trained",
        policy_name(line.after),
        line.decode,
        after,
        None,
        line.budget_tokens,
        line.budget_seconds,
    )
    return [*starts, *controls, trained]


def r1_rows(report: Report) -> list[Row]:
    """The policies of section `[r1]` in the order of the report."""
    line, rows = report.headline, []
    for rung in report.r1:
        found = report.pooled(rung.policy, line.decode)
        if found is None:  # the report's own check lets none through
            continue
        rows.append(
            Row(
                "trained" if rung.policy == line.after else "start",
                rung.description,
                line.decode,
                found,
                None,
                rung.budget_tokens,
                rung.budget_seconds,
            )
        )
    return rows


@dataclass(frozen=True)
class SeedTable:
    """Column names, and rows of (name, cells): every seed, median, range."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


def seed_table(seeds: Sequence[SeedResult]) -> SeedTable:
    """Headline numbers of every seed with their median and range.

    A number that no seed has gives no column; a control that only some seeds
    ran gives one without a median.
    """
    columns: dict[str, tuple[list[float | None], Callable[[float | None], str]]] = {
        "Before": ([s.before for s in seeds], percent),
        "After": ([s.after for s in seeds], percent),
    }
    for control in sorted({c for s in seeds for c in s.controls}):
        values = [s.controls.get(control) for s in seeds]
        columns[f"Control {control}"] = values, percent
    columns |= {
        "Tokens before": ([s.before_length for s in seeds], number),
        "Tokens after": ([s.after_length for s in seeds], number),
        "Format": ([s.format for s in seeds], percent),
        "RL seconds": ([s.rl_seconds for s in seeds], number),
    }
    columns = {
        name: column
        for name, column in columns.items()
        if any(value is not None for value in column[0])
    }
    rows = [
        (str(seed.seed), [show(values[i]) for values, show in columns.values()])
        for i, seed in enumerate(seeds)
    ]
    middles, ranges = [], []
    for values, show in columns.values():
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            middles.append(MISSING)
            ranges.append(MISSING)
            continue
        middle, low, high = median_and_range(known)
        middles.append(show(middle))
        ranges.append(f"{show(low).removesuffix(' %')}–{show(high)}")
    if seeds:
        rows += [("median", middles), ("range", ranges)]
    return SeedTable(list(columns), rows)


def policy_name(policy: str) -> str:
    return NAMES.get(policy, policy)


def short(text: str, width: int = 24) -> str:
    """The text, cut to `width` letters for the side of a figure."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def how(decode: str, forced_think: bool = False) -> str:
    """How the answers were decoded, in words."""
    return f"{decode}, starts with <think>" if forced_think else decode


def percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def interval(e: Evaluation) -> str:
    return f"[{100 * e.ci_low:.1f}, {100 * e.ci_high:.1f}]"


def number(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def amount(value: float | None) -> str:
    """A count in three figures: 912, 45.0 k, 1.23 M, 671 G."""
    if value is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,500 rounds to 1.00 M, not to 1000 k.
        if value >= size * 0.9995:
            shown = value / size
            digits = 2 if shown < 9.995 else 1 if shown < 99.95 else 0
            return f"{shown:.{digits}f} {unit}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A time in words: 8.2 s, 4 min 05 s, 3 h 20 min."""
    if value is None:
        return MISSING
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def times(before: float | None, after: float | None) -> str | None:
    """How many times longer: "5.8x"; None if it cannot be said."""
    if not before or after is None:
        return None
    return f"{after / before:.1f}x"
