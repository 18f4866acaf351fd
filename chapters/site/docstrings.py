"""Habits of the package, told to Sphinx: fields of classes and of settings."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

_FIELD = re.compile(r"[a-z]\w*(, \w+)*: ")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _skip_field_numbers)
    app.connect("autodoc-process-signature", _settings_signature)
    # Before napoleon, which turns "Attributes:" into a list.
    app.connect("autodoc-process-docstring", _name_the_fields, priority=400)
    return {"version": "1", "parallel_read_safe": True}


def _skip_field_numbers(
    app: Sphinx, kind: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Python documents a NamedTuple's fields as "Alias for field number 0"."""
    doc = getattr(obj, "__doc__", None) or ""
    hidden = doc.startswith("Alias for field number") or name == "model_config"
    return True if hidden else None


def _settings_signature(
    app: Sphinx,
    kind: str,
    name: str,
    obj: Any,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, None] | None:
    """`GRPOConfig(steps=80, …)`: pydantic's own form is hardly readable."""
    if kind != "class" or not issubclass(obj, BaseModel):
        return None
    parts = []
    for field, info in obj.model_fields.items():
        plain = isinstance(info.default, str | int | float | bool | None)
        default = "" if info.is_required() else f"={info.default!r}"
        parts.append(field + (default if plain or not default else "=..."))
    return f"({', '.join(parts)})", None


def _name_the_fields(
    app: Sphinx, kind: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    if kind == "class":
        lines[:] = [*fields_named("\n".join(lines).strip()).split("\n"), ""]


def fields_named(docstring: str) -> str:
    """Put "Attributes:" above a paragraph that lists fields, one "name: …" each.

    A class here explains its fields in a plain paragraph. A second line of the
    same field is indented.
    """
    paragraphs = docstring.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        lines = paragraph.split("\n")
        listed = [bool(_FIELD.match(line)) for line in lines]
        deeper = [line.startswith("    ") for line in lines]
        whole = all(a or b for a, b in zip(listed, deeper, strict=True))
        if len(lines) > 1 and listed[0] and whole:
            body = "\n".join("    " + line for line in lines)
            paragraphs[i] = "Attributes:\n" + body
    return "\n\n".join(paragraphs)
