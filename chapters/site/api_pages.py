"""The reference of the package: one page for each of its folders."""

from __future__ import annotations

from pathlib import Path

from r1lite.book import Book, Chapter


def package_areas(package: Path, book: Book) -> dict[str, list[str]]:
    """area -> its modules. A folder of the package is an area of its own.

    The single modules form the area named like the package. Areas and modules
    come in the order of the chapters.
    """
    areas: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_folder = parts[-1] == "__init__"
        parts = parts[:-1] if is_folder else parts
        area = ".".join(parts[:2] if len(parts) > 2 or is_folder else parts[:1])
        if not any(part.startswith("_") for part in parts):
            areas.setdefault(area, []).append(".".join(parts))

    def place(module: str) -> tuple[int, str]:
        number = book.chapter_of(module)
        return (99 if number is None else number), module

    for modules in areas.values():
        modules.sort(key=lambda m: (m not in areas, place(m)))
    first = package.name
    return dict(sorted(areas.items(), key=lambda a: (a[0] != first, place(a[0]))))


def api_page(area: str, modules: list[str], book: Book, chapters: list[Chapter]) -> str:
    """The reference of one area, from the docstrings."""
    pages = {c.number: f"/chapters/{Path(c.notebook).stem}" for c in chapters}
    parts = [f"{area}\n{'=' * len(area)}\n"]
    for module in modules:
        if module != area:
            parts.append(f"{module}\n{'-' * len(module)}\n")
            number = book.chapter_of(module)
            if number is None:
                built = "On top of the book: no chapter builds it."
            elif number in pages:
                built = f"Built in :doc:`{pages[number]}`."
            else:
                built = f"Chapter {number:02d}, not written yet."
            parts.append(f".. rst-class:: built\n\n{built}\n")
        options = "" if module == "r1lite" else "\n   :members:\n   :ignore-module-all:"
        parts.append(f".. automodule:: {module}{options}\n   :member-order: bysource\n")
    return "\n".join(parts)
