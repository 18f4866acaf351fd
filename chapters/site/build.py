"""Build the book as HTML: python chapters/site/build.py [FOLDER]

Nothing is run and nothing is downloaded: the pages show the outputs that the
chapters store. First `pages.py` writes the sources of every page into
FOLDER/source, then Sphinx turns them into FOLDER/site. FOLDER is _build; another
has to be new, empty, or made by this script, which deletes what it holds.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
DEFAULT = REPO / "_build"
MARK = ".r1lite-book"  # lies in a folder that this script made
PARTS = ("source", "doctrees", "site")


def build(folder: Path) -> int:
    """Write FOLDER/site; returns Sphinx's exit code, 0 when all is well.

    A warning is an error: it is a broken link or a mistake in a docstring.
    """
    claim(folder)
    sys.path.insert(0, str(HERE))
    os.environ["HF_HUB_OFFLINE"] = "1"  # the API pages import the package
    from sphinx.cmd.build import main

    from pages import write_sources
    from r1lite.book import load_book

    source, trees, site = (folder / n for n in PARTS)
    write_sources(REPO, source, load_book())
    shutil.rmtree(site, ignore_errors=True)  # also the pages that are gone
    flags = ["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(trees)]
    return main([*flags, "-b", "html", str(source), str(site)])


def claim(folder: Path) -> None:
    """Mark `folder` as this script's; ends the script where it holds other files."""
    if folder.exists() and not _ours(folder):
        sys.exit(
            f"FOLDER: {folder} was not made by this script, which would delete files "
            "in it; name a new or an empty one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _ours(folder: Path) -> bool:
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else {""}
    # Earlier versions left no mark in the default folder; the last is myst-nb's.
    unmarked = folder == DEFAULT and names <= {*PARTS, "jupyter_execute"}
    return not names or MARK in names or unmarked


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    failed = build(given.resolve())
    if not failed:
        print(f"the book: {given / 'site' / 'index.html'} (open it in a browser)")
    sys.exit(failed)
