"""Settings: strict types, known keys, one-line errors with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import field_validator

from r1lite.errors import R1Error
from r1lite.settings import Section, parse


class Inner(Section):
    name: Literal["adamw", "muon"] = "adamw"
    rate: float = 0.1
    steps: int = 3


class Outer(Section):
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    path: Path = Path()
    fast: bool = False
    required: str

    @field_validator("required")
    @classmethod
    def _no_x(cls, value: str) -> str:
        if value == "x":
            raise ValueError("'x' is taken; choose another")
        return value


def test_plain_values_become_sections() -> None:
    values = {"required": "a", "many": [{"steps": 1}], "path": "b", "fast": True}
    got = parse(Outer, {**values, "inner": {"rate": 1}}, "recipe")
    assert got.many[0].steps == 1
    assert got.inner.rate == 1.0 and isinstance(got.inner.rate, float)
    assert got.path == Path("b")
    assert parse(Outer, got.model_dump(), "recipe") == got
    assert (
        parse(Outer, {"required": "a", "inner": Inner(steps=9)}, "r").inner.steps == 9
    )


@pytest.mark.parametrize(
    ("values", "start", "remedy"),
    [
        ({"inner": {"stepz": 1}}, "inner.stepz: no such key", "'inner.steps'"),
        ({"maybe": {"nam": "muon"}}, "maybe.nam: no such key", "'maybe.name'"),
        ({"many": [{"rat": 1.0}]}, "many.0.rat: no such key", "'many.0.rate'"),
        ({"zzzzzz": 1}, "zzzzzz: no such key", "inner, maybe, many"),
        ({"inner": {"steps": "3"}}, "inner.steps: '3' is not", "whole number"),
        ({"inner": {"steps": 1.5}}, "inner.steps: 1.5 is not", "whole number"),
        ({"inner": {"steps": True}}, "inner.steps: True is not", "whole number"),
        ({"inner": {"rate": "1"}}, "inner.rate: '1' is not", "a number"),
        ({"inner": {"rate": True}}, "inner.rate: True is not", "a number"),
        ({"inner": {"rate": float("nan")}}, "inner.rate: nan is not", "finite"),
        ({"inner": {"name": "sgd"}}, "inner.name: 'sgd'", "'adamw' or 'muon'"),
        ({"inner": 3}, "inner: 3 is not a section", "section"),
        ({"fast": 1}, "fast: 1 is not", "true or false"),
        ({"many": 1}, "many: 1 is not", "a list"),
        ({"required": 5}, "required: 5 is not", "text"),
        ({"required": "x"}, "required: 'x' is taken", "choose another"),
        ({"required": ["\n" * 99]}, "required: [", "text"),
    ],
)
def test_an_error_names_field_and_remedy(
    values: dict[str, Any], start: str, remedy: str
) -> None:
    with pytest.raises(R1Error) as caught:
        parse(Outer, {"required": "a", **values}, "recipe")
    message = str(caught.value)
    assert message.startswith(start)
    assert remedy in message
    assert message.endswith("(in recipe)")
    assert "\n" not in message and len(message) < 160


def test_missing_field_and_misspelling_first() -> None:
    with pytest.raises(R1Error, match=r"^required: is missing; add it"):
        parse(Outer, {}, "recipe")
    with pytest.raises(R1Error, match=r"^requird: no such key; .*'required'"):
        parse(Outer, {"requird": "a"}, "recipe")


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().steps = 4  # type: ignore[misc]
