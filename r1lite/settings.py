"""Settings from outside: strict sections, and errors that fit on one line.

A recipe is written by hand. A misspelt key that is silently ignored costs a
training run, so unknown keys, wrong types and not-a-number are all refused.
"""

from __future__ import annotations

import json
import typing
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from r1lite.errors import R1Error


class Section(BaseModel):
    """Base of every recipe section: known keys only, exact types, immutable.

    A whole number is welcome where a float is asked for; nothing else converts.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )


M = TypeVar("M", bound=BaseModel)

KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table of names and values",
    "model_type": "a section",
    "path_type": "a path in quotes",
}


def parse(model_cls: type[M], values: dict[str, Any], where: str) -> M:
    """Build `model_cls` from plain values, as a TOML file gives them.

    Raises:
        R1Error: the first thing that does not fit: the dotted field, what is
            wrong with it, what to do, and `where` it stands ("recipe").
    """
    try:
        # As JSON, because strict mode then takes a list for a tuple and a text
        # for a path (TOML has neither tuples nor paths) and converts no more.
        text = json.dumps(values, default=_plain)
        return model_cls.model_validate_json(text)
    except ValidationError as e:
        errors = sorted(
            e.errors(), key=lambda x: x["type"] != "extra_forbidden"
        )  # a misspelt key explains a missing one
        raise R1Error(f"{_explain(model_cls, errors[0])} (in {where})") from e


def _plain(value: Any) -> Any:
    """What `json` cannot write itself: sections, sets, dates."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


def _explain(model_cls: type[BaseModel], error: ErrorDetails) -> str:
    """One line for one pydantic error: field, what is wrong, remedy."""
    path = [str(part) for part in error["loc"]]
    field = ".".join(path) or "settings"
    kind, given = error["type"], _short(error["input"])
    if kind == "extra_forbidden":
        return f"{field}: no such key; {_nearest(model_cls, path)}"
    if kind == "missing":
        return f"{field}: is missing; add it"
    if kind == "literal_error":
        return f"{field}: {given} is not known; choose {error['ctx']['expected']}"
    if kind == "value_error":
        return f"{field}: {error['ctx']['error']}"
    if kind in KINDS:
        return f"{field}: {given} is not {KINDS[kind]}; give {KINDS[kind]}"
    return f"{field}: {given} does not fit; {error['msg'][0].lower()}{error['msg'][1:]}"


def _short(value: Any) -> str:
    """`repr` on one line, cut to what a line can show."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(model_cls: type[BaseModel], path: list[str]) -> str:
    """What to write in place of an unknown key."""
    owner = _section_at(model_cls, path[:-1])
    known = list(owner.model_fields) if owner else []
    close = get_close_matches(path[-1], known, n=1)
    if close:
        return f"did you mean {'.'.join([*path[:-1], close[0]])!r}?"
    return f"remove it or use one of {', '.join(known)}"


def _section_at(model_cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The section that `path` leads to, through optional fields and lists too."""
    current: type[BaseModel] | None = model_cls
    for part in path:
        if current and part in current.model_fields:
            current = _section_in(current.model_fields[part].annotation)
        # else an index or a dict's key: the section found is that of its values
    return current


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The first section an annotation mentions: itself, or inside `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _section_in(inner)
        if found:
            return found
    return None
