"""Gather several nano runs into the table that the README shows.

    for s in 0 1 2; do r1lite run nano --seed $s --out runs/nano-seed$s; done
    python tests/benchmarks/nano_seeds.py runs/nano-seed0 runs/nano-seed1 …

Copies each run's report.json and metrics.jsonl to results/nano/seedN and
writes results/nano/table.md: every number is a median over seeds with the
smallest and largest beside it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from statistics import fmean

from r1lite.report.results import Evaluation, median_and_range
from r1lite.report.schema import Report

RESULTS = Path(__file__).parents[2] / "results" / "nano"
Way = tuple[str, str, bool]


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Median (smallest to largest), in percent unless scaled otherwise."""
    middle, low, high = (round(v * scale, digits) for v in median_and_range(values))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(name: str, found: list[Evaluation], budget: str = "") -> str:
    """One line of the table."""
    lengths = [e.mean_length for e in found if e.mean_length is not None]
    forms = [e.format for e in found if e.format is not None]
    return (
        f"| {name} | {spread([e.accuracy for e in found])} | "
        f"{spread(lengths, 1)} | {spread(forms)} | {budget} |"
    )


def pooled(reports: list[Report], way: Way) -> list[Evaluation]:
    """The same way of answering in every run, over all its test problems."""
    found = [r.pooled(*way) for r in reports]
    return [e for e in found if e is not None]


def headline(reports: list[Report]) -> list[str]:
    """Before, after and every control, medians over seeds."""
    before = [e for r in reports if (e := r.before())]
    after = [e for r in reports if (e := r.after())]
    seconds = fmean(r.headline.budget_seconds or 0 for r in reports)
    tokens = fmean(r.headline.budget_tokens or 0 for r in reports)
    lines = [
        "| policy | right, % | answer, tokens | think + answer format, % | budget |",
        "|---|---|---|---|---|",
        row("SFT, greedy (before)", before),
        row("**GRPO, greedy (after)**", after, cost(tokens, seconds)),
    ]
    for i, control in enumerate(reports[0].controls):
        rows = [r.controls[i] for r in reports]
        found = [
            e
            for r, c in zip(reports, rows, strict=True)
            for e in [r.pooled(*c.way)]
            if e
        ]
        decodes = sorted({c.decode for c in rows})
        budget = ""
        if control.budget_tokens:
            budget = cost(
                fmean(c.budget_tokens or 0 for c in rows),
                fmean(c.budget_seconds or 0 for c in rows),
            )
        text = control.description.replace("<think>", "`<think>`")  # not HTML
        name = f"({control.id}) {text}, {' / '.join(decodes)}"
        lines.append(row(name, found, budget))
    return lines


def cost(tokens: float, seconds: float) -> str:
    """A budget in words."""
    return f"{tokens / 1e6:.2f} M tokens, {seconds:.0f} s"


def by_level(reports: list[Report]) -> list[str]:
    """Accuracy before and after by level, and the size of each test set."""
    lines = ["| level | unique test problems | before | after |", "|---|---|---|---|"]
    for first in reports[0].select("grpo"):
        cells = []
        for policy in ("sft", "grpo"):
            values = [
                e.accuracy
                for r in reports
                for e in r.select(policy)
                if (e.family, e.level) == (first.family, first.level)
            ]
            cells.append(spread(values))
        lines.append(
            f"| {first.family}/{first.level} | {first.n} | {' | '.join(cells)} |"
        )
    return lines


def main(folders: list[str]) -> None:
    """Copy, gather, write."""
    reports = [Report.load(f) for f in folders]
    for folder, report in zip(folders, reports, strict=True):
        target = RESULTS / f"seed{report.seed}"
        target.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "metrics.jsonl", "recipe.toml"):
            shutil.copyfile(Path(folder) / name, target / name)
    lines = [*headline(reports), "", *by_level(reports), ""]
    lines += [
        f"- seed {r.seed}: {v.text}"
        for r in reports
        for v in r.verdicts
        if v.family == "all"
    ]
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
