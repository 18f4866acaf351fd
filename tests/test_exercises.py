"""The exercises of the book, and the proof of their checks.

Every stub is TODO, every solution PASSes, every mutant FAILs with the words that
name its mistake. The stubs compared are those that git holds: a reader may solve
them in place and `make test` still passes.
"""

from __future__ import annotations

import ast
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import law

import r1lite
from r1lite.book.chapters import load_book
from r1lite.workbook.checking import examine
from r1lite.workbook.exercise import Exercise, Group, exercise_groups
from r1lite.workbook.generate import texts
from r1lite.workbook.swap import resolve

REPO = Path(__file__).parents[1]
FOLDER = REPO / "exercises"
GROUPS = exercise_groups(FOLDER)
BY_NAME = {g.name: g for g in GROUPS}
EVERY = [(g, e) for g in GROUPS for e in g.exercises]


@dataclass(frozen=True)
class Mutant:
    """A wrong solution: `old` replaced by `new` in one exercise's solution."""

    group: Group
    exercise: str
    name: str
    old: str
    new: str
    message: str


def mutants(group: Group) -> list[Mutant]:
    path = FOLDER / "mutants" / f"{group.name}.toml"
    rows = tomllib.loads(path.read_text())["mutant"]
    return [Mutant(group, **row) for row in rows]


MUTANTS = [m for g in GROUPS for m in mutants(g)]


def state(group: Group, text: str, number: str, tmp_path: Path) -> tuple[str, str]:
    """(state, message) of one exercise when the reader's file is `text`."""
    file = tmp_path / f"{group.name}.py"
    file.write_text(text)
    chosen = [e for e in group.exercises if e.number == number]
    (outcome,) = examine(FOLDER, group, chosen, file)
    return outcome.state, outcome.message


def replaced(group: Group, exercise: Exercise, region: str) -> str:
    """The solutions' file with the region of one exercise replaced."""
    text = group.file("solution")
    assert text.count(exercise.solution) == 1
    return text.replace(exercise.solution, region)


def committed(name: str) -> str:
    """A file as git holds it; as it lies there outside a checkout."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:exercises/{name}"],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    return shown.stdout if shown.returncode == 0 else (FOLDER / name).read_text()


def test_every_chapter_from_01_on_has_its_group() -> None:
    written = [c for c in load_book().chapters if c.written and not c.tour]
    assert [c.exercises for c in written] == list(BY_NAME)
    for chapter in written:
        numbers = [e.number for e in BY_NAME[chapter.exercises].exercises]
        assert numbers == [f"{chapter.number}.{i}" for i in range(1, len(numbers) + 1)]
        assert 4 <= len(numbers) <= 6


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_stub_and_solution_are_made_from_the_source(group: Group) -> None:
    for name, text in texts(group).items():
        assert committed(name) == text, f"{name}: run r1lite.workbook.generate"


@pytest.mark.parametrize(("group", "exercise"), EVERY, ids=[e.number for _, e in EVERY])
def test_stub_is_todo_and_solution_passes(
    group: Group, exercise: Exercise, tmp_path: Path
) -> None:
    stub = group.file("stub")
    assert state(group, stub, exercise.number, tmp_path)[0] == "TODO"
    # Untouched, but loaded, since another exercise was touched:
    touched = replaced(group, exercise, exercise.stub)
    assert state(group, touched, exercise.number, tmp_path)[0] == "TODO"
    solution = group.file("solution")
    assert state(group, solution, exercise.number, tmp_path) == ("PASS", "")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.exercise} {m.name}")
def test_mutant_fails_and_is_named(mutant: Mutant, tmp_path: Path) -> None:
    group = mutant.group
    (exercise,) = [e for e in group.exercises if e.number == mutant.exercise]
    assert exercise.solution.count(mutant.old) == 1, "old must stand there once"
    wrong = replaced(group, exercise, exercise.solution.replace(mutant.old, mutant.new))
    found, message = state(group, wrong, mutant.exercise, tmp_path)
    assert found == "FAIL"
    assert mutant.message in message
    assert "your code raised" not in message or "raised" in mutant.message


@pytest.mark.parametrize(("group", "exercise"), EVERY, ids=[e.number for _, e in EVERY])
def test_three_mutants_and_three_hints(group: Group, exercise: Exercise) -> None:
    own = [m for m in mutants(group) if m.exercise == exercise.number]
    assert len(own) >= 3
    assert len({m.message for m in own}) >= 2, "the mistakes need names of their own"
    assert len(exercise.hints) >= 3
    assert len(exercise.stub.splitlines()) < 60


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_a_syntax_error_fails(group: Group, tmp_path: Path) -> None:
    first = group.exercises[0]
    broken = replaced(group, first, first.solution + "\nx = (")
    found, message = state(group, broken, first.number, tmp_path)
    assert (found, "is not Python" in message) == ("FAIL", True)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_exercises_obey_the_law_of_growth(group: Group) -> None:
    package = law.Package(REPO / "r1lite", r1lite._HOME)
    number = int(group.name.partition("_")[0])
    for folder in ("source", "checks"):
        tree = ast.parse((FOLDER / folder / f"{group.name}.py").read_text())
        assert law.later_uses(tree, number, package, load_book()) == []


SWAPS = [e for _, e in EVERY if e.swaps]


@pytest.mark.parametrize("exercise", SWAPS, ids=lambda e: e.number)
def test_what_is_swapped_exists(exercise: Exercise) -> None:
    assert exercise.swaps is not None
    owner, name = resolve(exercise.swaps)
    assert callable(getattr(owner, name))
