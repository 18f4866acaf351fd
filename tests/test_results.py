"""What README and chapter 00 quote is raw, of this recipe, and quoted right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from r1lite import recipe as recipes
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


MICRO = REPO / "results" / "micro"
SMALLER = {  # what results/micro/README.md says was changed to fit two cores
    "checkpoint_seconds",
    "tokenizer.vocab_size",
    "tokenizer.train_bytes",
    "pretrain.steps",
    "pretrain.seq_len",
    "sft.steps",
    "sft.tokens",
    "sft.seq_len",
    "grpo.steps",
    "grpo.questions",
    "evaluation.problems",
    "evaluation.validation_problems",
}


def test_the_page_of_micro_gives_the_command_that_made_it() -> None:
    shipped = tomllib.loads((REPO / "r1lite" / "recipes" / "micro.toml").read_text())
    used = tomllib.loads((MICRO / "recipe.toml").read_text())
    assert set(differing(shipped, used)) == SMALLER
    page = (MICRO / "README.md").read_text()
    command = page.split("```")[1].replace("\\\n", " ")
    given = re.findall(r"--set (\S+?)='?([^' \n]+)", command)
    assert {name for name, _ in given} > SMALLER - {"checkpoint_seconds"}
    again = recipes.load("micro", {n: tomllib.loads(f"v={v}")["v"] for n, v in given})
    assert again.fingerprint() == recipes.read(MICRO / "recipe.toml").fingerprint()


def test_the_run_of_micro_is_whole_and_claims_no_more_than_it_measured() -> None:
    report = Report.load(MICRO)
    rows = metrics.read(MICRO / "metrics.jsonl")
    for stage in report.stages:
        steps = [r["step"] for r in rows if r["stage"] == stage.name]
        assert steps == list(range(stage.steps))
    assert {c.id for c in report.controls} == {1, 2}  # the others were not trained
    assert {v.outcome for v in report.verdicts} == {"elicitation", "not separated"}
    assert report.machine.commit in (page := (MICRO / "README.md").read_text())
    lines = (MICRO / "table.md").read_text().splitlines()
    assert len(lines) > 20
    assert [x for x in lines if x not in page] == []
    for e in (report.before(), report.after()):
        assert e is not None and f"{100 * e.accuracy:.1f} [" in page
    assert (MICRO / "result.png").stat().st_size < 100_000


SHORT = REPO / "results" / "nano-300"


def test_the_page_of_the_shorter_runs_says_what_their_files_say() -> None:
    page = " ".join((SHORT / "README.md").read_text().split())
    for seed in ("seed0", "seed1", "seed2", "seed0-again"):
        report, recipe = (
            Report.load(SHORT / seed),
            recipes.read(SHORT / seed / "recipe.toml"),
        )
        assert recipe.sft.steps == 300
        forced = report.pooled("sft", "greedy", True)
        for e in (report.after(), forced):
            assert e is not None and f"{100 * e.accuracy:.1f}" in page
    assert f"commit {report.machine.commit[:7]}" in page
    step = []
    for seed in ("seed0", "seed0-again"):
        rows = metrics.read(SHORT / seed / "metrics.jsonl")
        losses = [r["loss"] for r in rows if r["stage"] == "sft"]
        smooth = [fmean(losses[i : i + 15]) for i in range(len(losses) - 14)]
        step.append(next(i for i, x in enumerate(smooth) if x < 0.4) + 7)
        assert f"{smooth[-1]:.2f}" in page
    assert all(f"around step {round(s, -1)} in" in page for s in step), step
