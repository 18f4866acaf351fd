"""The picture and the table of results/micro, drawn from the recorded run.

    python tests/benchmarks/micro_picture.py

Left: the loss of pretraining and of SFT. Right: accuracy and length of the sampled
answers while GRPO trains. Writes result.png and table.md beside the run's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from nano_picture import ORANGE, PURPLE, draw_training

from r1lite.report.results import Evaluation
from r1lite.report.schema import Report
from r1lite.report.table import amount, headline_rows, interval, seconds
from r1lite.training import metrics

RESULTS = Path(__file__).parents[2] / "results" / "micro"


def draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Both stages in one line of tokens: SFT starts where pretraining ends."""
    before = 0.0
    for stage, colour in (("pretrain", PURPLE), ("sft", ORANGE)):
        mine = [r for r in rows if r["stage"] == stage]
        tokens = [before + r["tokens"] / 1e6 for r in mine]
        axes.plot(tokens, [r["loss"] for r in mine], color=colour, label=stage)
        before = tokens[-1]
    axes.set(xlabel="tokens, million", ylabel="loss, nats a token", ylim=(0, None))
    axes.legend(frameon=False)
    axes.set_title("Pretraining, then SFT")


def cells(e: Evaluation) -> str:
    """What the table says of one way of answering."""
    return (
        f"{100 * e.accuracy:.1f} {interval(e)} | {e.mean_length or 0:.1f} | "
        f"{100 * (e.format or 0):.1f}"
    )


def table(report: Report) -> list[str]:
    """Every policy over all test problems, then before and after by level."""
    lines = [
        "| policy | right, % [95 % interval] | answer, tokens | think + answer, % |",
        "|---|---|---|---|",
    ]
    for row in headline_rows(report):
        name = row.title.replace("<think>", "`<think>`")  # not HTML
        how = row.how.split(",")[0]  # what it starts with, its name says
        lines.append(f"| {name}, {how} | {cells(row.result)} |")
    lines += ["", "| level | problems | before | after | of 16 at T=1, before |"]
    lines.append("|---|---|---|---|---|")
    after = {(e.family, e.level): e for e in report.select("grpo")}
    for e in report.select("sft"):
        then = after[e.family, e.level]
        lines.append(
            f"| {e.family}/{e.level} | {e.n} | {100 * e.accuracy:.1f} | "
            f"{100 * then.accuracy:.1f} | {100 * (e.pass16 or 0):.1f} |"
        )
    lines += ["", "| stage | steps | tokens | time |", "|---|---|---|---|"]
    for s in report.stages:
        lines.append(
            f"| {s.name} | {s.steps} | {amount(s.tokens)} | {seconds(s.seconds)} |"
        )
    verdicts = [f"- {v.family}: {v.text}" for v in report.verdicts]
    return [*lines, "", *(v.replace("<think>", "`<think>`") for v in verdicts)]


def main() -> None:
    """Draw and write."""
    settings = {"axes.titlesize": 10, "axes.titlelocation": "left", "font.size": 9}
    with plt.rc_context({**settings, "axes.spines.top": False}):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        draw_losses(axes[0], metrics.read(RESULTS / "metrics.jsonl"))
        draw_training(axes[1], [RESULTS])
        figure.savefig(RESULTS / "result.png", dpi=110)
    lines = table(Report.load(RESULTS))
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
