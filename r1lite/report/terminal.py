"""What `r1lite run` prints at its end: the result, its controls, one talk."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from r1lite.report.reply import printable, segments
from r1lite.report.results import Reply, Sample
from r1lite.report.schema import PAGE_NAME, Report
from r1lite.report.table import (
    Row,
    amount,
    headline_rows,
    interval,
    number,
    percent,
    policy_name,
    seconds,
)

STYLES = {"start": "", "control": "magenta", "trained": "bold blue"}


def summary(report: Report, run_dir: Path | str | None = None) -> Group:
    """The tables, one conversation and where the report lies, to be printed.

    Texts of the run are never read as rich markup.
    """
    shown: list[RenderableType] = []
    for part in _parts(report):
        shown += [part, ""]
    if run_dir is not None:
        # Folded, not cropped: no letter of a long path may be lost.
        place = f"Report: {Path(run_dir) / PAGE_NAME}"
        shown.append(Text(place, overflow="fold"))
    return Group(*shown)


def _parts(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if report.stages:
        parts.append(_stages(report))
    rows = headline_rows(report)
    if rows:
        parts.append(_results(report, rows))
    if report.demonstrations:
        made = report.demonstrations
        parts.append(
            Text(
                f"SFT mix: {percent(made.answer_only)} answer-only; "
                f"{percent(made.wrong_steps)} of the reasoned examples have a wrong "
                "step. Such a mix builds the gap that RL closes."
            )
        )
    by_family = [f"{v.family}: {v.outcome}" for v in report.verdicts[1:]]
    if report.verdicts:
        parts.append(Text(report.verdicts[0].text, style="bold"))
    if by_family:
        parts.append(Text("By family: " + "; ".join(by_family) + "."))
    if report.mine:
        own = ", ".join(f"{n} {name}" for n, name in report.mine.items())
        said = f"Trained with the reader's own parts: {own}."
        parts.append(Text(said, style="green"))
    sample = _telling_sample(report)
    if sample is not None:
        parts.append(_conversation(sample))
    return parts


def _stages(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"Stages of {report.recipe}"))
    table.add_column("Stage")
    for column in ("Time", "Tokens", "Tokens/s"):
        table.add_column(column, justify="right")
    for stage in report.stages:
        table.add_row(
            Text(stage.name),
            seconds(stage.seconds),
            amount(stage.tokens or None),
            amount(stage.tokens_per_s or None),
        )
    table.add_row("all", seconds(report.seconds), "", "", style="bold")
    return table


def _results(report: Report, rows: list[Row]) -> Table:
    problems = rows[-1].result.n
    title = f"Before and after RL, and every control ({problems:,} problems)"
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("Policy", overflow="fold")
    for column in ("Accuracy", "95 %", "Tokens", "Format"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        e = row.result
        name = Text(row.title)
        name.append(f"  {row.how}", style="dim")
        table.add_row(
            name,
            percent(e.accuracy),
            interval(e),
            number(e.mean_length),
            percent(e.format),
            style=STYLES[row.kind],
        )
    if not report.controls:
        table.caption = "No control was run."
    return table


def _telling_sample(report: Report) -> Sample | None:
    """The first sample that RL got right, else the first of all."""
    after = report.headline.after
    for sample in report.samples:
        if after in sample.replies and sample.replies[after].correct:
            return sample
    return report.samples[0] if report.samples else None


def _conversation(sample: Sample) -> Panel:
    lines: list[Text] = [
        Text.assemble(("User  ", "bold"), printable(sample.question)),
        Text(f"      (right answer: {printable(sample.reference)})", style="dim"),
    ]
    for policy, reply in sample.replies.items():
        lines += [Text(""), _reply(policy, reply)]
    title = "One question before and after RL"
    return Panel(Group(*lines), title=title, title_align="left", box=box.ROUNDED)


def _reply(policy: str, reply: Reply) -> Text:
    mark = ("right", "green") if reply.correct else ("wrong", "red")
    text = Text.assemble((policy_name(policy), "bold"), "  ", mark)
    for piece in segments(reply.text):
        if piece.kind == "think":
            end = "</think>" if piece.closed else " …"
            text.append(f"\n<think>{piece.text}{end}", style="dim")
        elif piece.kind == "answer":
            end = "</answer>" if piece.closed else " …"
            text.append(f"\n<answer>{piece.text}{end}")
        else:
            text.append(f"\n{piece.text}")
    return text
