"""The picture at the top of the README, drawn from results/nano.

    python tests/benchmarks/nano_picture.py

Left: accuracy on the test split of every policy, the median over seeds with the
range. Right: accuracy and length of the sampled answers while GRPO trains.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from r1lite.report.results import median_and_range
from r1lite.report.schema import Report

RESULTS = Path(__file__).parents[2] / "results" / "nano"
ORANGE, PURPLE, BLUE = "#d97a1f", "#9a6fd0", "#2f86d6"
NAMES = {1: "made to think", 2: "best temperature", 3: "clean SFT"}
NAMES |= {4: "more of the same SFT", 5: "expert iteration"}
Bar = tuple[str, list[float], str]


def bars(reports: list[Report]) -> list[Bar]:
    """(name, accuracy of each seed in per cent, colour), first on top."""
    found: list[Bar] = [("SFT (before)", accuracies(reports, "sft"), ORANGE)]
    for i, control in enumerate(reports[0].controls):
        if control.policy == "base":
            continue  # 0 %: before SFT the model does not know the form
        values = [
            100 * e.accuracy
            for r in reports
            if (e := r.pooled(*r.controls[i].way)) is not None
        ]
        found.append((f"({control.id}) {NAMES[control.id]}", values, PURPLE))
    return [*found, ("GRPO (after)", accuracies(reports, "grpo"), BLUE)]


def accuracies(reports: list[Report], policy: str) -> list[float]:
    """Greedy, over all test problems."""
    return [100 * e.accuracy for r in reports if (e := r.pooled(policy)) is not None]


def rl_rows(seed: Path) -> list[dict[str, Any]]:
    """The steps of GRPO as they were logged."""
    rows = map(json.loads, (seed / "metrics.jsonl").read_text().splitlines())
    return [r for r in rows if r["stage"] == "grpo"]


def draw_bars(axes: Any, reports: list[Report]) -> None:
    """One bar a policy: what RL reaches, and what reaches it without RL."""
    rows = bars(reports)
    for place, (_, values, colour) in enumerate(rows):
        middle, low, high = median_and_range(values)
        axes.barh(place, middle, color=colour, height=0.62)
        axes.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], color="#222222"
        )
        axes.text(high + 2, place, f"{middle:.1f} %", va="center")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(xlim=(0, 120), xlabel="right on unseen problems, %")
    axes.set_xticks(range(0, 101, 20))
    axes.invert_yaxis()
    axes.set_title("The default answer, and five ways without RL")


def draw_training(axes: Any, seeds: list[Path]) -> None:
    """Accuracy and length while GRPO trains, one line a seed."""
    right = axes.twinx()
    for seed in seeds:
        rows = rl_rows(seed)
        steps = [r["step"] for r in rows]
        axes.plot(steps, [100 * r["accuracy"] for r in rows], color=BLUE)
        right.plot(steps, [r["length"] for r in rows], color=ORANGE, linestyle="--")
    axes.set(xlabel="GRPO step", ylim=(0, 102))
    axes.set_ylabel("right, % (solid)", color=BLUE)
    right.set_ylabel("tokens of an answer (dashed)", color=ORANGE)
    right.set_ylim(0)
    axes.set_title("While RL trains, sampled answers")


def main() -> None:
    """Draw results/nano/result.png."""
    seeds = sorted(RESULTS.glob("seed*"))
    reports = [Report.load(s) for s in seeds]
    settings = {"axes.titlesize": 10, "axes.titlelocation": "left", "font.size": 9}
    with plt.rc_context({**settings, "axes.spines.top": False}):
        figure, axes = plt.subplots(
            1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(5, 4)
        )
        draw_bars(axes[0], reports)
        draw_training(axes[1], seeds)
        figure.savefig(RESULTS / "result.png", dpi=130)


if __name__ == "__main__":
    main()
