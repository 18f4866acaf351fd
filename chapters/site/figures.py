"""What the notebooks lack for a web page: alt texts, and colour for `show`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 400  # characters of an alt text; it ends with a whole sentence
_CODE = re.compile(r"@|class |def |async def ")
_OTHER = re.compile(r"^(?!\s|@|class |def |async def |[)\]}#])", re.M)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", _finish_notebook)
    return {"version": "1", "parallel_read_safe": True}


def _finish_notebook(app: Sphinx, tree: nodes.document) -> None:
    for cell in tree.findall(_is_code_cell):
        for image in cell.findall(nodes.image):
            if not image.get("alt"):
                image["alt"] = alt_text(cell)
        for block in list(cell.findall(nodes.literal_block)):
            if block["language"] == "myst-ansi" and _CODE.match(block.astext()):
                _colour(block)


def _colour(block: nodes.literal_block) -> None:
    """What `show` prints is Python; what the cell prints after it is not."""
    code, rest = split_code(block.astext())
    blocks = []
    for text, language in ((code, "python"), (rest, block["language"])):
        if text:
            part = nodes.literal_block(text, text)
            part.attributes.update(block.attributes, language=language)
            blocks.append(part)
    block.replace_self(blocks)


def split_code(text: str) -> tuple[str, str]:
    """Functions and classes, and what follows them: their first other line."""
    found = _OTHER.search(text)
    end = found.start() if found else len(text)
    return text[:end].rstrip("\n"), text[end:]


def _is_code_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def alt_text(cell: nodes.Element) -> str:
    """The words under a plot; by the book's rule they say what is seen.

    A paragraph that begins with "Figure." comes first. Without words before
    the next plot or section, the heading has to do.
    """
    words = next(_paragraphs_below(cell), None)
    if words is None:
        section = cell.parent
        while section.parent and not isinstance(section, nodes.section):
            section = section.parent
        title = section.next_node(nodes.title)
        return f"Plot of the section “{title.astext() if title else ''}”."
    words = " ".join(words.split()).removeprefix("Figure.").strip()
    return "Plot. " + _whole_sentences(words)


def _paragraphs_below(cell: nodes.Element) -> Iterator[str]:
    """The paragraphs after a cell in its section, one that is a caption first."""
    siblings = cell.parent.children
    below = siblings[siblings.index(cell) + 1 :]
    texts = []
    for node in below:
        if isinstance(node, nodes.section):
            break
        if isinstance(node, nodes.Element) and node.next_node(nodes.image):
            break  # the next plot; what follows it describes that one
        if isinstance(node, nodes.paragraph):
            texts.append(node.astext())
    yield from sorted(texts, key=lambda t: not t.startswith("Figure."))


def _whole_sentences(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    end = max(text.rfind(mark, 0, LONGEST) for mark in (". ", "? ", "! "))
    return text[: end + 1] if end > 0 else text[:LONGEST].rsplit(" ", 1)[0] + " …"
