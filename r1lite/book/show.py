"""`show(thing)`: the package's own source, printed into the chapter.

The chapter never holds a copy of package code. What it prints is stored as the
cell's output and compared on every test run, so text and package cannot drift.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from r1lite.errors import R1Error


def show(*things: Any) -> None:
    """Print the source of classes, functions, methods or properties.

    Raises:
        R1Error: something given has no Python source of its own.
    """
    print("\n\n".join(_source_of(thing) for thing in things))


def _source_of(thing: Any) -> str:
    """The dedented source text of one class, function, method or property."""
    if isinstance(thing, property):
        thing = thing.fget
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        raise R1Error(
            f"show: {type(thing).__name__} has no source of its own; "
            "give a class, function, method or property"
        )
    try:
        return textwrap.dedent(inspect.getsource(thing)).strip("\n")
    except (OSError, TypeError) as error:
        name = getattr(thing, "__qualname__", repr(thing))
        raise R1Error(
            f"show: {name} is not written in a Python file; "
            "give something that r1lite or the notebook defines"
        ) from error
