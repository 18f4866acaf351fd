"""Write stubs and solutions from the sources: python -m r1lite.workbook.generate.

A stub that a reader has changed is left alone; `--force` writes it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

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
            path.write_text(text, encoding="utf-8")
            said.append(f"wrote {name}")
    return said


def reset(folder: Path, group: Group, exercise: Exercise) -> None:
    """Put one exercise's region of the reader's file back to its stub."""
    path = folder / f"{group.name}.py"
    preamble, *own = regions(path.read_text(encoding="utf-8"))
    parts = [exercise.stub if number_of(r) == exercise.number else r for r in own]
    path.write_text("\n\n\n".join([preamble, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for line in generate(exercise_folder(), "--force" in sys.argv):
        print(line)
