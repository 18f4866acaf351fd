"""The package and the chapters obey the one map; and each rule can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import law

import r1lite
from r1lite.book.chapters import Book, Chapter, load_book

REPO = Path(__file__).parents[1]
PACKAGE = law.Package(REPO / "r1lite", r1lite._HOME)
BOOK = load_book()


def test_every_module_is_in_the_map() -> None:
    assert len(PACKAGE.files) > 10
    assert law.unmapped(PACKAGE, BOOK) == []


def test_written_chapters_name_modules_that_exist() -> None:
    assert law.missing(PACKAGE, BOOK) == []


def test_nothing_imports_from_a_later_chapter() -> None:
    assert law.forward_imports(PACKAGE, BOOK) == []


def test_no_import_cycle() -> None:
    assert law.cycles(PACKAGE) == []


@pytest.mark.parametrize(
    "chapter", [c for c in BOOK.chapters if c.written], ids=lambda c: c.notebook
)
def test_chapters_use_only_what_is_built(chapter: Chapter) -> None:
    path = REPO / "chapters" / chapter.notebook
    found = law.notebook_violations(path, chapter.number, PACKAGE, BOOK, r1lite.__all__)
    assert found == []


def test_every_public_name_is_shown_in_one_chapter() -> None:
    assert law.showing_violations(REPO / "chapters", PACKAGE, BOOK) == []


def test_written_chapters_and_notebooks_are_the_same_set() -> None:
    files = {p.name for p in (REPO / "chapters").glob("*.ipynb")}
    assert files == {c.notebook for c in BOOK.chapters if c.written}


# From here on: a made-up package in which every rule is broken once.

TOY_BOOK = Book(
    chapters=(
        Chapter(0, "tour", "", "00.ipynb", "written", ("toy.base",), tour=True),
        Chapter(1, "one", "", "01.ipynb", "written", ("toy.part.one",)),
        Chapter(2, "two", "", "02.ipynb", "planned", ("toy.part.two", "toy.late")),
    ),
    on_top=("toy.cli",),
)
TOY = {
    "__init__.py": "",
    "base.py": "class Base:\n    pass\n",
    "part/__init__.py": "",
    "part/one.py": "from toy.base import Base\ndef one():\n    pass\n",
    "part/two.py": "from .one import one\ndef two():\n    pass\n",
    "late.py": "from toy.part import two\n",
    "cli.py": "import toy.late\n",
}


def _toy(folder: Path, **changes: str) -> law.Package:
    root = folder / "toy"
    for name, text in {**TOY, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return law.Package(root, {"two": "toy.part.two"})


def _notebook(folder: Path, name: str, source: str) -> Path:
    cell = {"cell_type": "code", "source": source}
    path = folder / name
    path.write_text(json.dumps({"cells": [cell]}))
    return path


def test_the_lawful_toy_passes_every_rule(tmp_path: Path) -> None:
    toy = _toy(tmp_path)
    _notebook(tmp_path, "00.ipynb", "from toy.base import Base\nshow(Base)")
    _notebook(tmp_path, "01.ipynb", "from toy.part.one import one\nshow(one)")
    assert law.unmapped(toy, TOY_BOOK) == []
    assert law.missing(toy, TOY_BOOK) == []
    assert law.forward_imports(toy, TOY_BOOK) == []
    assert law.cycles(toy) == []
    assert law.showing_violations(tmp_path, toy, TOY_BOOK) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import toy.part.two",
        "from toy.part import two",
        "from toy.part.two import two",
        "from .part.two import two",
        "from .part import two as helper",
        "def f():\n    from toy.part.two import two",
        "import toy\ntoy.part.two.two()",
        "from toy import two",
        "import toy\ntoy.two()",
        "from importlib import import_module\nimport_module('toy.part.two')",
    ],
)
def test_a_forward_import_is_found(tmp_path: Path, statement: str) -> None:
    toy = _toy(tmp_path, **{"base.py": statement})
    found = law.forward_imports(toy, TOY_BOOK)
    assert "toy.base (ch 0) imports toy.part.two (ch 2)" in found


def test_a_forward_import_through_a_package_is_found(tmp_path: Path) -> None:
    # The package's __init__ counts as chapter 1, its earliest module.
    toy = _toy(tmp_path, **{"part/__init__.py": "from toy.part.two import two"})
    assert law.forward_imports(toy, TOY_BOOK) == [
        "toy.part (ch 1) imports toy.part.two (ch 2)"
    ]


def test_importing_the_top_is_found(tmp_path: Path) -> None:
    toy = _toy(tmp_path, **{"late.py": "import toy.cli"})
    assert law.forward_imports(toy, TOY_BOOK) == [
        "toy.late imports toy.cli, which is on top of the book"
    ]


def test_a_module_outside_the_map_is_found(tmp_path: Path) -> None:
    toy = _toy(tmp_path, **{"stray.py": ""})
    assert [line.split(":")[0] for line in law.unmapped(toy, TOY_BOOK)] == ["toy.stray"]


def test_a_named_module_that_is_missing_is_found(tmp_path: Path) -> None:
    toy = _toy(tmp_path)
    (tmp_path / "toy/part/one.py").unlink()
    gone = law.Package(tmp_path / "toy")
    assert "toy.part.one" in toy.files
    assert law.missing(gone, TOY_BOOK) == [
        "chapter 1 names toy.part.one, which does not exist"
    ]


def test_a_cycle_is_found(tmp_path: Path) -> None:
    toy = _toy(tmp_path, **{"base.py": "if True:\n    import toy.part.one"})
    assert law.cycles(toy) == ["toy.base -> toy.part.one -> toy.base"]


@pytest.mark.parametrize("when", ["def f():", "if TYPE_CHECKING:"])
def test_an_import_that_does_not_run_closes_no_cycle(tmp_path: Path, when: str) -> None:
    toy = _toy(tmp_path, **{"base.py": f"{when}\n    import toy.part.one"})
    assert law.cycles(toy) == []


@pytest.mark.parametrize(
    ("number", "source", "lawful"),
    [
        (1, "from toy.part.one import one", True),
        (1, "from toy.part.two import two", False),
        (1, "import toy\ntoy.two()", False),
        (1, "%matplotlib inline\nfrom toy.cli import main", False),
        (0, "import toy\ntoy.two()", True),
        (0, "from toy import two", True),
        (0, "from toy.part.two import two", False),
        (0, "from toy.part.one import one", False),
        (0, "import toy.cli", False),
    ],
)
def test_a_notebook_that_runs_ahead_is_found(
    tmp_path: Path, number: int, source: str, lawful: bool
) -> None:
    toy = _toy(tmp_path)
    path = _notebook(tmp_path, "x.ipynb", source)
    found = law.notebook_violations(path, number, toy, TOY_BOOK, ["two"])
    assert (found == []) == lawful


def test_names_shown_twice_or_never_are_found(tmp_path: Path) -> None:
    toy = _toy(tmp_path)
    _notebook(tmp_path, "00.ipynb", "import toy.base as b\nshow(b.Base.method)")
    _notebook(tmp_path, "01.ipynb", "from toy.base import Base\nshow(Base)")
    assert law.showing_violations(tmp_path, toy, TOY_BOOK) == [
        "toy.base.Base is shown in chapters [0, 1]",
        "toy.part.one.one is not shown in chapter 1",
    ]


def test_a_name_shown_through_a_reexport_counts_for_its_home(tmp_path: Path) -> None:
    toy = _toy(tmp_path, **{"part/__init__.py": "from toy.part.one import one"})
    _notebook(tmp_path, "00.ipynb", "from toy.base import Base\nshow(Base)")
    _notebook(tmp_path, "01.ipynb", "from toy.part import one\nshow(one)")
    assert law.showing_violations(tmp_path, toy, TOY_BOOK) == []
