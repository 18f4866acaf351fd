"""The pages follow from what exists: chapters, exercises, modules."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from docutils import nodes

from r1lite.book import Book, Chapter, load_book
from r1lite.workbook.exercise import Group, parse_group

REPO = Path(__file__).parents[2]
SOURCE = '''"""Exercises of chapter 1: gating."""

import torch

# %% 1.1 | What two gates leave | predict | level 1 | 5 min
# A softmax over 64 experts is almost flat.
#
# How much is left? Write `LEFT`.
# HINT: a first hint
#   over two lines
# HINT: a second one
# SOLUTION
LEFT = 2 / 64
# STUB
# LEFT = None  # your number
# END


# %% 1.2 | The choice | fill | level 2 | 15 min | swaps r1lite.moe.gating.Router.choose
# Choose the experts of `scores` (T, E).
# HINT: topk
def choose(scores: torch.Tensor) -> torch.Tensor:
    """The experts of each token."""
    # SOLUTION
    return scores.topk(2).indices
    # STUB
    # raise NotImplementedError("1.2: choose the experts")
    # END
'''


SITE = REPO / "chapters" / "site"
sys.path.insert(0, str(SITE))  # as build.py and conf.py find them
api_pages, build, exercise_pages, docstrings, figures, pages = map(
    import_module,
    ("api_pages", "build", "exercise_pages", "docstrings", "figures", "pages"),
)
CHAPTERS = (
    Chapter(0, "Start", "", "00_start.ipynb", "written", ("r1lite.config",)),
    Chapter(1, "Gating: who", "", "01_gating.ipynb", "written", ("r1lite.moe",)),
    Chapter(2, "Experts", "", "02_experts.ipynb", "planned", ("r1lite.late",)),
)
BOOK = Book(CHAPTERS, on_top=("r1lite.cli",))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A small repository with two written chapters and one set of exercises."""
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# 01 · Gating"]},
        {"cell_type": "markdown", "metadata": {}, "source": ["## Exercises\n", "x"]},
    ]
    for chapter in CHAPTERS[:2]:
        _write(tmp_path, f"chapters/{chapter.notebook}", json.dumps({"cells": cells}))
    _write(tmp_path, "chapters/site/index.md", f"# Book\n\n{pages.MAP}\n")
    _write(tmp_path, "exercises/source/01_gating.py", SOURCE)
    for module in ("__init__", "config", "cli", "moe/__init__", "moe/gating"):
        _write(tmp_path, f"r1lite/{module}.py", "")
    return tmp_path


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _group(folder: Path) -> Group:
    _write(folder, "01_gating.py", SOURCE)
    return parse_group(folder / "01_gating.py")


def test_every_written_chapter_and_exercise_file_becomes_a_page(repo: Path) -> None:
    names = [name for name, _ in pages.sources(repo, BOOK)]
    assert names == [
        "index.md",
        "chapters/00_start.ipynb",
        "chapters/01_gating.ipynb",
        "exercises/01_gating.md",
        "api/r1lite.rst",
        "api/r1lite.moe.rst",
    ]


def test_the_real_repository_has_its_pages() -> None:
    names = [name for name, _ in pages.sources(REPO, load_book())]
    for chapter in load_book().chapters:
        assert (f"chapters/{chapter.notebook}" in names) == chapter.written
    for path in (REPO / "exercises" / "source").glob("*.py"):
        assert f"exercises/{path.stem}.md" in names
    for path in (REPO / "r1lite").glob("*/__init__.py"):
        if not path.parent.name.startswith("_"):
            assert f"api/r1lite.{path.parent.name}.rst" in names


def test_a_planned_chapter_is_named_but_not_linked(repo: Path) -> None:
    index = dict(pages.sources(repo, BOOK))["index.md"]
    linked = "| 01 | [Gating: who](chapters/01_gating) | [2](exercises/01_gating) |"
    assert linked in index
    assert "| 02 | Experts | not written yet |" in index
    assert "02_experts" not in index


def test_a_chapter_links_to_its_exercises(repo: Path) -> None:
    made = dict(pages.sources(repo, BOOK))
    cells = json.loads(made["chapters/01_gating.ipynb"])["cells"]
    assert "(../exercises/01_gating)" in cells[1]["source"]
    assert "exercises/" not in made["chapters/00_start.ipynb"]


def test_an_exercise_page_shows_everything_folded(tmp_path: Path) -> None:
    page = exercise_pages.exercise_page(_group(tmp_path), CHAPTERS[1], linked=True)
    assert page.startswith("# 01 · Exercises: Gating\n")
    assert "[chapter 01](../chapters/01_gating)" in page
    assert "`r1lite check 1.1`" in page
    assert "*predict a number · level 1 of 3 · 5 minutes*" in page
    assert "trains the model in place of `r1lite.moe.gating.Router.choose`" in page
    assert "```python\nLEFT = None  # your number\n```" in page
    open_part, _, folded = page.partition("## 1.2")[0].partition("<details")
    assert "2 / 64" in folded and "2 / 64" not in open_part
    assert "a first hint over two lines" in folded


def test_a_tag_in_a_hint_is_text(tmp_path: Path) -> None:
    group = _group(tmp_path)
    (tmp_path / "01_gating.py").write_text(
        SOURCE.replace("# HINT: topk", "# HINT: <think> is text, `<think>` code")
    )
    group = parse_group(tmp_path / "01_gating.py")
    page = exercise_pages.exercise_page(group, CHAPTERS[1], linked=True)
    assert "&lt;think> is text, `<think>` code" in page


def test_the_prose_of_an_exercise_is_text_and_not_code(tmp_path: Path) -> None:
    first, second = _group(tmp_path).exercises
    prose, stub, solution = exercise_pages.split(first)
    assert prose == (
        "A softmax over 64 experts is almost flat.\n\nHow much is left? Write `LEFT`."
    )
    assert (stub, solution) == ("LEFT = None  # your number", "LEFT = 2 / 64")
    prose, stub, solution = exercise_pages.split(second)
    assert prose == "Choose the experts of `scores` (T, E)."
    assert stub.startswith("def choose") and "NotImplementedError" in stub
    assert "topk(2)" in solution and "topk(2)" not in stub


def test_prose_wraps_anew_and_keeps_the_breaks_made_on_purpose() -> None:
    prose = """A paragraph that goes on over the end of
its line, and ends.

LEFT: a share of everything that is in
  the sum.
RIGHT: one of `x < 1`:
  "A" tokens < 64;
  "B" others."""
    assert exercise_pages.typeset(prose) == (
        "A paragraph that goes on over the end of its line, and ends.\n\n"
        "LEFT: a share of everything that is in the sum.\\\n"
        "RIGHT: one of `x < 1`:\\\n"
        '\u2003"A" tokens &lt; 64;\\\n'
        '\u2003"B" others.'
    )


def test_modules_are_grouped_by_folder_in_the_order_of_the_book(repo: Path) -> None:
    assert api_pages.package_areas(repo / "r1lite", BOOK) == {
        "r1lite": ["r1lite", "r1lite.config", "r1lite.cli"],
        "r1lite.moe": ["r1lite.moe", "r1lite.moe.gating"],
    }


def test_an_api_page_says_which_chapter_builds_a_module(repo: Path) -> None:
    made = dict(pages.sources(repo, BOOK))
    assert "Built in :doc:`/chapters/01_gating`." in made["api/r1lite.moe.rst"]
    assert "no chapter builds it" in made["api/r1lite.rst"]


def test_sources_that_are_gone_are_removed_and_equal_ones_kept(repo: Path) -> None:
    target = repo / "_build" / "source"
    pages.write_sources(repo, target, BOOK)
    gone, kept = target / "exercises/01_gating.md", target / "chapters/00_start.ipynb"
    time = kept.stat().st_mtime_ns
    assert gone.exists()
    (repo / "exercises/source/01_gating.py").unlink()
    pages.write_sources(repo, target, BOOK)
    assert not gone.exists()
    assert kept.stat().st_mtime_ns == time


def test_a_build_takes_new_empty_and_own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, default = tmp_path / "new", tmp_path / "_build"
    monkeypatch.setattr(build, "DEFAULT", default)
    build.claim(new)
    (new / "site").mkdir()
    build.claim(new)  # has the mark now
    (default / "source").mkdir(parents=True)  # from before there was a mark
    for name in ("doctrees", "jupyter_execute", "site"):  # what a build leaves
        (default / name).mkdir()
    build.claim(default)
    (tmp_path / "empty").mkdir()
    build.claim(tmp_path / "empty")


def test_a_build_refuses_a_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "DEFAULT", tmp_path / "_build")
    for folder in ("exercises", "_build"):
        _write(tmp_path, f"{folder}/source/a.py", "mine")
        _write(tmp_path, f"{folder}/notes.txt", "mine")
        with pytest.raises(SystemExit, match="name a new or an empty one"):
            build.build(tmp_path / folder)
        assert (tmp_path / folder / "source" / "a.py").read_text() == "mine"
    with pytest.raises(SystemExit, match="name a new or an empty one"):
        build.build(tmp_path / "exercises" / "notes.txt")


def test_a_paragraph_of_fields_is_named() -> None:
    made = docstrings.fields_named("What it is.\n\nids: (T,) of\n    them.\nsize: n.")
    assert made == (
        "What it is.\n\nAttributes:\n    ids: (T,) of\n        them.\n    size: n."
    )


@pytest.mark.parametrize(
    "text",
    [
        "What it is.",
        "A paragraph\nnote: of two lines.",
        "past: one line is a sentence.",
        "Args:\n    x: a number.\n    y: another.",
    ],
)
def test_other_paragraphs_stay(text: str) -> None:
    assert docstrings.fields_named(text) == text


def _section(*parts: nodes.Node) -> nodes.Element:
    """A section with a plot and what stands below it; gives the plot's cell."""
    cell = nodes.container("", nodes.image(uri="x.png"), nb_element="cell_code")
    nodes.section("", nodes.title("", "Load"), cell, *parts)
    return cell


def _text(text: str) -> nodes.paragraph:
    return nodes.paragraph("", text)


def test_the_words_under_a_plot_are_its_alt_text() -> None:
    numbers = nodes.container("", nodes.literal_block("", "1 2 3"))
    cell = _section(numbers, _text("The curve\nfalls."), _text("Something else."))
    assert figures.alt_text(cell) == "Plot. The curve falls."


def test_a_caption_comes_before_other_words() -> None:
    cell = _section(_text("Now this."), _text("Figure. Two bars, one tall."))
    assert figures.alt_text(cell) == "Plot. Two bars, one tall."


def test_a_plot_without_words_has_its_heading() -> None:
    other = nodes.container("", nodes.image(uri="y.png"), nb_element="cell_code")
    cell = _section(other, _text("This is about the second plot."))
    assert figures.alt_text(cell) == "Plot of the section “Load”."


def test_a_long_alt_text_ends_with_a_sentence() -> None:
    found = figures.alt_text(_section(_text("A sentence of words. " * 40)))
    assert len(found) <= figures.LONGEST + 10
    assert found.endswith("of words.")


def test_shown_code_ends_where_the_cell_prints_something_else() -> None:
    code = "@cache\ndef f(\n    x,\n) -> int:\n    return 1\n\n\nclass A:\n    pass"
    assert figures.split_code(code) == (code, "")
    assert figures.split_code(f"{code}\ntrue: True\n    3\n") == (
        code,
        "true: True\n    3\n",
    )
