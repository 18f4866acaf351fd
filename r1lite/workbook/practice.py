"""`r1lite check`: states, hints one at a time, the solution, and watching a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax

from r1lite.errors import R1Error
from r1lite.workbook import generate, progress
from r1lite.workbook.checking import Outcome, examine, select_exercises
from r1lite.workbook.exercise import (
    Exercise,
    Group,
    exercise_folder,
    exercise_groups,
)

COLOURS = {"PASS": "green", "FAIL": "red", "TODO": "yellow"}


def state_of(folder: Path, numbers: str | None) -> list[Outcome]:
    """Check what `numbers` stands for and remember what passes."""
    outcomes: list[Outcome] = []
    for group, chosen in select_exercises(exercise_groups(folder), numbers):
        outcomes += examine(folder, group, chosen)
    for outcome in outcomes:
        if outcome.state == "PASS":
            progress.note(folder, outcome.exercise.number, passed=True)
    return outcomes


def show_state(console: Console, numbers: str | None) -> bool:
    """Print states; with no number, the table of all. True unless one FAILs."""
    folder = exercise_folder()
    outcomes = state_of(folder, numbers)
    if numbers is None:
        console.print(progress.table(outcomes, progress.read(folder)))
    for outcome in outcomes:
        if numbers is not None or outcome.state == "FAIL":
            say(console, outcome)
    return all(o.state != "FAIL" for o in outcomes)


def say(console: Console, outcome: Outcome) -> None:
    """One outcome in colour."""
    colour = COLOURS[outcome.state]
    label = escape(outcome.exercise.label)
    console.print(f"[bold {colour}]{outcome.state}[/]  {label}", highlight=False)
    if outcome.message:
        console.print(f"      {escape(outcome.message)}", highlight=False)


def _one(folder: Path, number: str | None, option: str) -> tuple[Group, Exercise]:
    if number is None or "." not in number:
        raise R1Error(f"{option}: name one exercise, e.g. r1lite check 1.2 {option}")
    ((group, (exercise,)),) = select_exercises(exercise_groups(folder), number)
    return group, exercise


def show_hint(console: Console, number: str | None) -> None:
    """The next hint; earlier ones are shown again above it."""
    folder = exercise_folder()
    _, exercise = _one(folder, number, "--hint")
    taken = int(progress.read(folder).get(exercise.number, {}).get("hints", 0))
    taken = min(taken + 1, len(exercise.hints))
    for i, hint in enumerate(exercise.hints[:taken], 1):
        console.print(f"hint {i} of {len(exercise.hints)}: {escape(hint)}")
    if taken == len(exercise.hints):
        console.print(f"the last one; r1lite check {number} --give-up shows a solution")
    progress.note(folder, exercise.number, hints=taken)


def show_solution(console: Console, number: str | None) -> None:
    """A solution: the reader's file stays as it is."""
    folder = exercise_folder()
    _, exercise = _one(folder, number, "--give-up")
    console.print(Syntax(exercise.solution, "python", background_color="default"))
    progress.note(folder, exercise.number, gave_up=True)


def start_again(console: Console, number: str | None) -> None:
    """Put one exercise back to its stub."""
    folder = exercise_folder()
    group, exercise = _one(folder, number, "--reset")
    generate.reset(folder, group, exercise)
    console.print(f"{exercise.number} in {group.name}.py is the stub again")


def watch(
    console: Console,
    numbers: str | None,
    rounds: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Check again whenever an exercise file is saved; Ctrl-C ends it."""
    folder, seen, done = exercise_folder(), "", 0
    console.print(f"watching {folder}; Ctrl-C ends it")
    while rounds is None or done < rounds:
        stamp = repr([p.stat().st_mtime_ns for p in sorted(folder.glob("*.py"))])
        if stamp != seen:
            seen = stamp
            console.rule(time.strftime("%H:%M:%S"))
            show_state(console, numbers)
        done += 1
        sleep(0.5)
