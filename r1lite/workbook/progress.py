"""What a reader has done: a small file beside the exercises that git ignores."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.table import Table

from r1lite.workbook.checking import Outcome

FILE = ".progress.json"
Record = dict[str, dict[str, int | bool]]


def read(folder: Path) -> Record:
    """number -> {"hints": how many were shown, "gave_up": …, "passed": …}."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):
        return {}  # a damaged record costs a reader nothing but the marks in it
    return found if isinstance(found, dict) else {}


def note(folder: Path, number: str, **values: int | bool) -> None:
    """Remember `values` for one exercise."""
    record = read(folder)
    record[number] = {**record.get(number, {}), **values}
    partial = folder / (FILE + ".partial")
    partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / FILE)


def table(outcomes: list[Outcome], record: Record) -> Table:
    """One row an exercise: state now, hints taken, whether the solution was seen."""
    colours = {"PASS": "green", "FAIL": "red", "TODO": "dim"}
    shown = Table("exercise", "kind", "level", "minutes", "state", "hints", "trains")
    for outcome in outcomes:
        e, seen = outcome.exercise, record.get(outcome.exercise.number, {})
        colour = colours[outcome.state]
        state = f"[{colour}]{outcome.state}[/{colour}]"
        shown.add_row(
            f"{e.number} {e.title}",
            e.kind,
            str(e.level),
            str(e.minutes),
            state + (" (solution seen)" if seen.get("gave_up") else ""),
            f"{seen.get('hints', 0)} of {len(e.hints)}",
            "--mine" if e.swaps else "",
        )
    return shown
