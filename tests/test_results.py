"""What README and chapter 00 quote is raw, of this recipe, and quoted right."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from r1lite.report.schema import Report
from r1lite.training import metrics

REPO = Path(__file__).parents[1]
SEEDS = sorted((REPO / "results" / "nano").glob("seed*"))
TABLE = REPO / "results" / "nano" / "table.md"


def differing(asked: dict[str, Any], used: dict[str, Any], at: str = "") -> list[str]:
    """Fields of `asked` that `used` does not hold alike."""
    found = []
    for name, value in asked.items():
        place = f"{at}{name}"
        if isinstance(value, dict):
            found += differing(value, used.get(name, {}), place + ".")
        elif used.get(name) != value:
            found.append(place)
    return found


def test_there_are_three_seeds() -> None:
    assert [s.name for s in SEEDS] == ["seed0", "seed1", "seed2"]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: s.name)
def test_each_run_used_the_recipe_that_is_shipped(seed: Path) -> None:
    asked = tomllib.loads((REPO / "r1lite" / "recipes" / "nano.toml").read_text())
    used = tomllib.loads((seed / "recipe.toml").read_text())
    assert set(differing(asked, used)) <= {"seed"}
    assert f"seed{used['seed']}" == seed.name


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: s.name)
def test_each_run_is_whole_and_keeps_its_promises(seed: Path) -> None:
    report = Report.load(seed)
    rows = metrics.read(seed / "metrics.jsonl")
    for stage in report.stages:
        steps = [r["step"] for r in rows if r["stage"] == stage.name]
        assert steps == list(range(stage.steps))
    assert {c.id for c in report.controls} == {1, 2, 3, 4, 5}
    assert report.machine.commit
    promised = [g for g in report.goals if not g.name.startswith("time")]
    assert len(promised) == 4
    assert all(g.met for g in promised)
    assert all(e.n >= 512 for e in report.select("grpo"))


def test_the_readme_quotes_the_table() -> None:
    readme = (REPO / "README.md").read_text()
    lines = [x for x in TABLE.read_text().splitlines() if x.startswith("|")]
    assert len(lines) > 10
    assert [x for x in lines if x not in readme] == []
