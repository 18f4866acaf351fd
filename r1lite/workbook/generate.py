"""Write stubs and solutions from the sources: python -m r1lite.workbook.generate.

A stub that a reader has changed is left alone; `--force` writes it again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from r1lite.errors import R1Error
from r1lite.workbook.exercise import (
    Exercise,
    Group,
    exercise_folder,
    exercise_groups,
    number_of,
    regions,
)


def texts(group: Group) -> dict[str, str]:
    """Path inside the folder -> content, for the two files of a group."""
    return {
        f"{group.name}.py": group.file("stub"),
        f"solutions/{group.name}.py": group.file("solution"),
    }


def generate(folder: Path, force: bool = False) -> list[str]:
    """Write what differs; returns the names written, and those kept."""
    said = []
    for group in exercise_groups(folder):
        for name, text in texts(group).items():
            path = folder / name
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            if path.exists() and path.parent == folder and not force:
                said.append(f"kept {name}: it was changed (--force writes it again)")
                continue
            path.parent.mkdir(exist_ok=True)
            _write(path, text)
            said.append(f"wrote {name}")
    return said


def reset(folder: Path, group: Group, exercise: Exercise) -> None:
    """Put one exercise's region of the reader's file back to its stub.

    Raises:
        R1Error: the file cannot be read, or the exercise's heading is not in it.
    """
    path = folder / f"{group.name}.py"
    try:
        preamble, *own = regions(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise R1Error(
            f"{path}: cannot be read ({error}); restore it from git"
        ) from None
    number = exercise.number
    if number not in map(number_of, own):
        raise R1Error(
            f"{path}: the line '# %% {number} | …' is gone; put it back, then --reset"
        )
    parts = [exercise.stub if number_of(r) == number else r for r in own]
    _write(path, "\n\n\n".join([preamble, *parts]) + "\n")


def _write(path: Path, text: str) -> None:
    """All or nothing: where the disk is full a reader's answers stay."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    for line in generate(exercise_folder(), "--force" in sys.argv):
        print(line)
