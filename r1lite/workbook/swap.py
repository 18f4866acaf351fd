"""`r1lite run nano --mine`: the reader's own passing parts train the model."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from r1lite.errors import R1Error
from r1lite.workbook.checking import Outcome, examine
from r1lite.workbook.exercise import (
    Exercise,
    exercise_folder,
    exercise_groups,
    regions,
)


@dataclass(frozen=True)
class OwnPart:
    """A part the reader wrote: which exercise, what it replaces, and its text."""

    exercise: Exercise
    function: Any
    digest: str

    @property
    def target(self) -> str:
        """The dotted name in the package."""
        assert self.exercise.swaps is not None
        return self.exercise.swaps


def own_parts(folder: Path) -> tuple[list[OwnPart], list[Outcome]]:
    """(parts whose check passes, exercises that were tried and fail)."""
    parts: list[OwnPart] = []
    refused: list[Outcome] = []
    for group in exercise_groups(folder):
        swappable = [e for e in group.exercises if e.swaps]
        if not swappable:
            continue  # loading a file may change the process: 11 asks for interpreting
        outcomes = examine(folder, group, swappable)
        refused += [o for o in outcomes if o.state == "FAIL"]
        passed = [o for o in outcomes if o.state == "PASS"]
        if passed:
            text = (folder / f"{group.name}.py").read_text(encoding="utf-8")
            # The whole file: a part may call what stands above it.
            whole = "\n".join(regions(text)).encode()
            digest = hashlib.sha256(whole).hexdigest()[:12]
            parts += [_part(o.exercise, o.answers, digest) for o in passed]
    return parts, refused


def _part(exercise: Exercise, module: Any, digest: str) -> OwnPart:
    name = re.findall(r"^def (\w+)", exercise.solution, re.M)[-1]
    function = getattr(module, name, None)
    if function is None:
        raise R1Error(
            f"exercise {exercise.number}: the function {name!r} is gone; put it back"
        )
    return OwnPart(exercise, function, digest)


@contextmanager
def using(parts: list[OwnPart]) -> Iterator[None]:
    """Replace the package's functions by the reader's; put them back after."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for part in parts:
            owner, name = resolve(part.target)
            original = owner.__dict__[name]
            _require_same_arguments(part, original)
            for place, key in _places(owner, name, original):
                undo.append((place, key, original))
                setattr(place, key, part.function)
        yield
    finally:
        for place, key, original in reversed(undo):
            setattr(place, key, original)


def resolve(target: str) -> tuple[Any, str]:
    """(module or class that holds it, the last name) of a dotted target.

    Raises:
        R1Error: the package has no such thing.
    """
    words = target.split(".")
    for cut in range(len(words) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(words[:cut]))
        except ModuleNotFoundError:
            continue
        for word in words[cut:-1]:
            owner = getattr(owner, word, None)
        if owner is not None and words[-1] in vars(owner):
            return owner, words[-1]
        break
    raise R1Error(f"swaps: the package has no {target}; correct the exercise's source")


def _places(owner: Any, name: str, original: Any) -> list[tuple[Any, str]]:
    """Where the original is held: by its class, or by every module that imports it."""
    if inspect.isclass(owner):
        return [(owner, name)]
    modules = [m for n, m in list(sys.modules.items()) if n.startswith("r1lite")]
    return [
        (m, key)
        for m in modules
        for key, value in list(vars(m).items())
        if value is original
    ]


def _require_same_arguments(part: OwnPart, original: Any) -> None:
    wanted = list(inspect.signature(original).parameters)
    found = list(inspect.signature(part.function).parameters)
    if wanted != found:
        raise R1Error(
            f"exercise {part.exercise.number}: the arguments are {found}, "
            f"{part.target} takes {wanted}; use the same names"
        )


def announced_parts(console: Console) -> list[OwnPart]:
    """The reader's passing parts, printed together with those that are refused.

    Raises:
        R1Error: nothing passes, so there is nothing to train with.
    """
    parts, refused = own_parts(exercise_folder())
    for outcome in refused:
        console.print(
            f"[red]not used[/red]: {escape(outcome.exercise.label)}\n"
            f"      {escape(outcome.message)}",
            highlight=False,
        )
    if not parts:
        raise R1Error(
            "--mine: no exercise that can train the model passes yet; "
            "`r1lite check` lists them under 'trains'"
        )
    for part in parts:
        console.print(f"[green]yours[/green]: {part.exercise.number} {part.target}")
    return parts


def described(parts: list[OwnPart]) -> dict[str, str]:
    """What the recipe and the report remember: number -> target and text's digest."""
    return {p.exercise.number: f"{p.target} {p.digest}" for p in parts}


def require_named(named: dict[str, str] | None, mine: bool) -> None:
    """A recipe that was trained with own parts is not resumed without them."""
    if named and not mine:
        raise R1Error(
            "mine: this recipe was trained with own parts; add --mine, or remove the "
            "section [mine]"
        )
