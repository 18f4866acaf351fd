"""The stable names of `import r1lite`, however they are reached."""

from __future__ import annotations

import subprocess
import sys

import pytest

import r1lite


def test_the_public_names_are_these() -> None:
    assert r1lite.__all__ == [
        "__version__",
        "R1Config",
        "R1Error",
        "R1Model",
        "from_pretrained",
        "save_pretrained",
        "generate",
    ]


@pytest.mark.parametrize("name", r1lite.__all__[1:])
def test_a_name_is_no_module_even_after_its_module_is_loaded(name: str) -> None:
    """A module called like a public name would hide it once it is imported."""
    before = getattr(r1lite, name)
    assert callable(before)
    assert getattr(r1lite, name) is before
    assert f"r1lite.{name}" not in sys.modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'R2Model'"):
        r1lite.R2Model  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import r1lite, sys; print('torch' in sys.modules, r1lite.R1Config)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "False <class 'r1lite.config.R1Config'>\n", out.stderr
