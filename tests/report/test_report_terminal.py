"""The summary at the end of `r1lite run`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from r1lite.report import Machine, Reply, Report, Sample
from r1lite.report.table import (
    amount,
    headline_rows,
    percent,
    seconds,
    seed_table,
    times,
)
from r1lite.report.terminal import summary


def printed(report: Report, run_dir: Path | None = None, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary(report, run_dir))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_summary_shows_result_controls_talk_and_place(full_report: Report) -> None:
    place = Path("/runs") / ("long-name-" * 12)
    text = printed(full_report, place)
    for part in (
        "28.0 %",
        "94.5 %",
        "[93.6, 95.3]",
        "(1) SFT made to start with <think>",
        "(5) Expert iteration",
        "69.9 % answer-only",
        "Elicitation: RL's default answer",
        "By family: chain: elicitation; countdown: elicitation.",
        "3 + 8 * 4 - 9 mod 10",
        "<answer>5</answer>",
        "4 min 01 s",
    ):
        assert part in text, part
    assert f"{place}/report.html" in "".join(text.splitlines())


def test_summary_fits_a_narrow_terminal(full_report: Report) -> None:
    assert max(map(len, printed(full_report, width=60).splitlines())) <= 60


def test_summary_reads_no_markup_and_no_control_characters(machine: Machine) -> None:
    text = "[/red] [bold]5[/bold] \x1b[2J\x07"
    sample = Sample(
        question=text,
        reference=text,
        family=text,
        replies={"grpo": Reply(text=text, correct=True)},
    )
    shown = printed(Report(recipe=text, seed=0, machine=machine, samples=[sample]))
    assert shown.count("[/red] [bold]5[/bold]") == 3
    assert "\x1b" not in shown and "\x07" not in shown


def test_summary_of_an_empty_report(machine: Machine) -> None:
    assert printed(Report(recipe="r", seed=0, machine=machine)).strip() == ""


def test_rows_stand_in_order_and_no_policy_twice(full_report: Report) -> None:
    kinds = [row.kind for row in headline_rows(full_report)]
    assert kinds == ["start"] * 2 + ["control"] * 5 + ["trained"]
    titles = [row.title for row in headline_rows(full_report)]
    assert len(set(titles)) == 8 and titles[0] == "Base" and titles[-1] == "GRPO"


def test_seeds_with_median_and_range(full_report: Report) -> None:
    table = seed_table(full_report.seeds)
    assert table.columns[:4] == ["Before", "After", "Control 1", "Control 4"]
    assert [name for name, _ in table.rows] == ["0", "1", "2", "median", "range"]
    assert table.rows[3][1][1] == "93.5 %"
    assert table.rows[4][1][1] == "92.5–94.5 %"


def test_a_control_that_one_seed_lacks_has_no_median(full_report: Report) -> None:
    seeds = list(full_report.seeds)
    seeds[1] = seeds[1].model_copy(update={"controls": {1: 0.9}})
    table = seed_table(seeds)
    at = table.columns.index("Control 4")
    assert [cells[at] for _, cells in table.rows] == ["31.0 %", "–", "31.0 %", "–", "–"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (912, "912"),
        (999.4, "999"),
        (999.9, "1.00 k"),
        (45_000, "45.0 k"),
        (999_600, "1.00 M"),
        (1_912_320, "1.91 M"),
        (671_026_404_352, "671 G"),
    ],
)
def test_amounts(value: float | None, shown: str) -> None:
    assert amount(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (8.24, "8.2 s"),
        (59.99, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_times_in_words(value: float | None, shown: str) -> None:
    assert seconds(value) == shown


def test_shares_and_ratios() -> None:
    assert percent(0.12345) == "12.3 %" and percent(None) == "–"
    assert times(8.0, 32.0) == "4.0x"
    assert times(0.0, 3.0) is None and times(None, 3.0) is None
