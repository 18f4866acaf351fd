"""Names of schemes, and groups that fit."""

from __future__ import annotations

import pytest

from r1lite.errors import R1Error
from r1lite.quantization.schemes import NAMES, Scheme, scheme_of


@pytest.mark.parametrize("name", [*NAMES, "int4-g128-asym", "nf4-g64", "int4"])
def test_names_come_back(name: str) -> None:
    scheme = scheme_of(name)
    assert scheme.name == name
    assert scheme_of(scheme) is scheme and scheme_of(scheme.name) == scheme


def test_what_a_name_says() -> None:
    assert scheme_of("int4-g64-asym") == Scheme("int", 4, 64, symmetric=False)
    assert scheme_of("int8-dynamic").activations
    assert scheme_of("nf4-g32").kind == "codebook"


@pytest.mark.parametrize(
    "name", ["", "int3", "int5-g32", "INT8", "int8-g", "nf4-g32-asym", "fp8", "int8-64"]
)
def test_an_unknown_scheme_names_the_known(name: str) -> None:
    with pytest.raises(R1Error, match=r"unknown; choose int8, int8-dynamic.*fp8-block"):
        scheme_of(name)


def test_groups_too_small_to_save_anything() -> None:
    with pytest.raises(R1Error, match="groups of 8 are too small"):
        scheme_of("int4-g8")


def test_a_group_shrinks_to_fit_or_says_why_not() -> None:
    asked = scheme_of("int4-g128")
    assert asked.fitted(1408, "w") is asked
    assert asked.fitted(96, "w").group == 32
    assert scheme_of("int8").fitted(37, "w").group is None
    with pytest.raises(R1Error, match="down: groups of 128 do not divide its 100"):
        asked.fitted(100, "down")
    with pytest.raises(R1Error, match="down: 37 inputs, an odd number"):
        asked.fitted(37, "down")
    assert scheme_of("fp8-block").fitted(37, "w").kind == "fp8"
