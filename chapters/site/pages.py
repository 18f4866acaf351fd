"""The sources of every page: what exists in the repository becomes a page.

The title page, the written chapters of `chapters.toml`, one page for each file
in `exercises/source`, one for each part of the package. A page appears when
its chapter, its exercises or its module does; nothing is listed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from api_pages import api_page, package_areas
from exercise_pages import exercise_page
from r1lite.book import Book, Chapter
from r1lite.workbook.exercise import Group, exercise_groups

MAP = "<!-- the map of chapters -->"


def write_sources(repo: Path, target: Path, book: Book) -> None:
    """Make `target` hold the sources of the book and nothing else.

    Files that are the same already keep their time, so that Sphinx reads only
    what changed.
    """
    wanted = {target / name: text for name, text in sources(repo, book)}
    for path in target.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def sources(repo: Path, book: Book) -> Iterator[tuple[str, str]]:
    """Every page: its path below the source folder, and its text."""
    chapters = [
        c
        for c in book.chapters
        if c.written and (repo / "chapters" / c.notebook).exists()
    ]
    groups = {
        int(g.exercises[0].number.partition(".")[0]): g
        for g in exercise_groups(repo / "exercises")
        if g.exercises
    }
    areas = package_areas(repo / "r1lite", book)
    front = (repo / "chapters/site/index.md").read_text(encoding="utf-8")
    yield (
        "index.md",
        front.replace(MAP, map_of(book, chapters, groups))
        + toctree("Chapters", [f"chapters/{Path(c.notebook).stem}" for c in chapters])
        + toctree("Exercises", [f"exercises/{g.name}" for g in groups.values()])
        + toctree("The package", [f"api/{area}" for area in areas]),
    )
    for c in chapters:
        text = (repo / "chapters" / c.notebook).read_text(encoding="utf-8")
        yield f"chapters/{c.notebook}", chapter_page(text, groups.get(c.number))
    for number, group in groups.items():
        chapter = next(c for c in book.chapters if c.number == number)
        page = exercise_page(group, chapter, linked=chapter in chapters)
        yield f"exercises/{group.name}.md", page
    for area, modules in areas.items():
        yield f"api/{area}.rst", api_page(area, modules, book, chapters)


def toctree(caption: str, pages: list[str]) -> str:
    """A part of the table of contents; nothing while it has no pages."""
    if not pages:
        return ""
    options = [":hidden:", ":titlesonly:", f":caption: {caption}"]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def map_of(book: Book, chapters: Iterable[Chapter], groups: dict[int, Group]) -> str:
    """The table of all chapters, those that are written with their links."""
    rows = ["| | Chapter | Exercises |", "|---|---|---|"]
    for c in book.chapters:
        written = c in chapters
        title = f"[{c.title}](chapters/{Path(c.notebook).stem})" if written else c.title
        group = groups.get(c.number)
        last = "" if written else "not written yet"
        if group:
            last = f"[{len(group.exercises)}](exercises/{group.name})"
        rows.append(f"| {c.number:02d} | {title} | {last} |")
    return "\n".join(rows)


def chapter_page(text: str, group: Group | None) -> str:
    """The notebook; its section "Exercises" gets a link to their page."""
    notebook = json.loads(text)
    link = group and (
        f"\n\n[All {len(group.exercises)} exercises of this chapter]"
        f"(../exercises/{group.name}), with hints and solutions to unfold.\n"
    )
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if link and cell["cell_type"] == "markdown":
            source = source.replace("## Exercises", "## Exercises" + link, 1)
        cell["source"] = source
    return json.dumps(notebook, ensure_ascii=False, indent=1)
