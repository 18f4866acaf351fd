"""The map of the book, read from chapters.toml beside this file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from r1lite.errors import R1Error

MAP = Path(__file__).with_name("chapters.toml")


@dataclass(frozen=True)
class Chapter:
    """One chapter: what it is called and which modules it brings.

    `modules` are dotted names; a package stands for everything inside it.
    `exercises` is the name of its group of exercises, empty where it has none.
    `tour` marks the one chapter that may use the public names early.
    """

    number: int
    title: str
    article: str
    notebook: str
    status: str
    modules: tuple[str, ...]
    exercises: str = ""
    tour: bool = False

    @property
    def written(self) -> bool:
        """Whether the notebook exists."""
        return self.status == "written"


@dataclass(frozen=True)
class Book:
    """All chapters in order, and the modules that sit on top of them."""

    chapters: tuple[Chapter, ...]
    on_top: tuple[str, ...]

    def chapter_of(self, module: str) -> int | None:
        """The chapter that brings `module`; None if it is on top or unknown.

        The longest name that covers the module wins. A package that no name
        covers counts as the earliest chapter among its modules.
        """
        covering = [
            (len(name), chapter.number)
            for chapter in self.chapters
            for name in chapter.modules
            if _covers(name, module)
        ]
        if covering:
            return max(covering)[1]
        inside = [
            chapter.number
            for chapter in self.chapters
            for name in chapter.modules
            if _covers(module, name)
        ]
        return min(inside, default=None)

    def is_on_top(self, module: str) -> bool:
        """Whether `module` may import everything and be imported by nobody."""
        return any(_covers(name, module) for name in self.on_top)


def _covers(name: str, module: str) -> bool:
    """Whether `module` is `name` or lies inside it: r1lite.moe covers ….gating."""
    return module == name or module.startswith(name + ".")


@cache
def load_book(path: Path = MAP) -> Book:
    """Read the map; `path` is given only by tests.

    Raises:
        R1Error: a key is missing or unknown.
    """
    with path.open("rb") as file:
        table = tomllib.load(file)
    try:
        rows = [
            Chapter(**{**row, "modules": tuple(row["modules"])})
            for row in table["chapter"]
        ]
        return Book(tuple(rows), tuple(table["on_top"]))
    except (KeyError, TypeError) as error:
        raise R1Error(
            f"chapters.toml: {error}; give each chapter the keys of Chapter"
        ) from error


def chapter_of(module: str) -> Chapter:
    """The chapter that brings `module`, for example "r1lite.moe.gating".

    Raises:
        R1Error: the module is not in the map.
    """
    book = load_book()
    number = book.chapter_of(module)
    if number is None:
        raise R1Error(
            f"module: {module!r} is in no chapter; look in r1lite/book/chapters.toml"
        )
    return next(c for c in book.chapters if c.number == number)
