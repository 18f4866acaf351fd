"""Exercises: one source per chapter, from which stub and solution are made.

A source is valid Python and is the solution. Each exercise begins with

    # %% 1.2 | Title | fill | level 2 | 15 min | swaps r1lite.moe.gating.Router.choose

then prose, `# HINT:` lines, and `# SOLUTION`, `# STUB`, `# END` around what the
reader has to write. `swaps` is there where the reader's version can train the
model (`r1lite run nano --mine`): the last function of the exercise replaces it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from r1lite.errors import R1Error

KINDS = ("predict", "fill", "bug", "measure")
_HEAD = re.compile(r"^# %% ", re.M)
_BLOCK = re.compile(
    r"^[ ]*# SOLUTION\n(?P<solution>.*?)^[ ]*# STUB\n(?P<stub>.*?)^[ ]*# END\n",
    re.M | re.S,
)
_HINT = re.compile(r"^# HINT:(.*(?:\n#   .*)*)\n", re.M)


@dataclass(frozen=True)
class Exercise:
    """One exercise; `stub` and `solution` are its region in either file."""

    number: str
    title: str
    kind: str
    level: int
    minutes: int
    swaps: str | None
    hints: tuple[str, ...]
    stub: str
    solution: str

    @property
    def label(self) -> str:
        """Number, title, level and time, as lists show it."""
        return f"{self.number} {self.title} (level {self.level}, {self.minutes} min)"


@dataclass(frozen=True)
class Group:
    """The exercises of one chapter. `preamble` is what stands above them."""

    name: str
    preamble: str
    exercises: tuple[Exercise, ...]

    def file(self, which: str) -> str:
        """The text of a whole file; `which` is "stub" or "solution"."""
        parts = [str(getattr(e, which)) for e in self.exercises]
        return "\n\n\n".join([self.preamble, *parts]) + "\n"


def exercise_folder() -> Path:
    """The folder `exercises` here or above, or the one R1LITE_EXERCISES names.

    Raises:
        R1Error: there is none.
    """
    named = os.environ.get("R1LITE_EXERCISES")
    here = Path.cwd()
    places = (
        [Path(named)] if named else [p / "exercises" for p in (here, *here.parents)]
    )
    for place in places:
        if (place / "source").is_dir():
            return place
    raise R1Error(
        f"exercises: no such folder in {named or 'this folder or above'}; go into the "
        "repository, or name the folder in R1LITE_EXERCISES"
    )


def exercise_groups(folder: Path) -> list[Group]:
    """Every group of `folder`, in the order of the chapters."""
    return [parse_group(p) for p in sorted((folder / "source").glob("*.py"))]


def parse_group(path: Path) -> Group:
    """Read one source file.

    Raises:
        R1Error: it is not in the form above.
    """
    preamble, *rest = regions(path.read_text(encoding="utf-8"))
    exercises = tuple(_parse(text, path) for text in rest)
    numbers = [e.number for e in exercises]
    if len(set(numbers)) != len(numbers):
        raise R1Error(f"{path.name}: a number stands twice; renumber {numbers}")
    return Group(path.stem, preamble, exercises)


def regions(text: str) -> list[str]:
    """A file cut before each `# %%` line, blank ends removed."""
    starts = [m.start() for m in _HEAD.finditer(text)]
    cuts = [0, *starts, len(text)]
    return [text[a:b].strip() for a, b in pairwise(cuts)]


def number_of(region: str) -> str:
    """The number in a region's `# %%` line: "1.2"."""
    return region.partition("|")[0].removeprefix("# %% ").strip()


def _parse(text: str, path: Path) -> Exercise:
    text += "\n"
    head, _, body = text.partition("\n")
    fields = [f.strip() for f in head.removeprefix("# %% ").split("|")]
    found = re.match(
        r"(\d+\.\d+)\|(.+)\|(\w+)\|level ([123])\|(\d+) min(?:\|swaps ([\w.]+))?$",
        "|".join(fields),
    )
    if not found or found[3] not in KINDS or not _BLOCK.search(body):
        raise R1Error(
            f"{path.name}: {head!r} is not 'N.M | title | {'/'.join(KINDS)} | "
            "level L | T min' with SOLUTION, STUB and END below; correct it"
        )
    number, title, kind, level, minutes, swaps = found.groups()
    hints = tuple(" ".join(h.replace("\n#", " ").split()) for h in _HINT.findall(body))
    bare = head + "\n" + _HINT.sub("", body)
    stub = _BLOCK.sub(lambda m: _uncommented(m["stub"]), bare).strip()
    solution = _BLOCK.sub(lambda m: m["solution"], bare).strip()
    return Exercise(
        number, title, kind, int(level), int(minutes), swaps, hints, stub, solution
    )


def _uncommented(block: str) -> str:
    return re.sub(r"^([ ]*)# ?", r"\1", block, flags=re.M)
