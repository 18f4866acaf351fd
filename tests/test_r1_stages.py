"""The stages after GRPO, each for a moment, from the models of the chapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r1lite import hub
from r1lite import recipe as recipes
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.pipeline import r1, summary
from r1lite.pipeline.context import Context, open_run
from r1lite.pipeline.measure import Measure, Way
from r1lite.report import Report, table
from r1lite.training import metrics
from r1lite.training.loop import StageResult

NANO = Path(__file__).parents[1] / "chapters" / "fixtures" / "nano"
SFT = {"steps": 2, "tokens": 512, "seq_len": 128}
RL = {"steps": 1, "questions": 4, "group_size": 4, "max_new_tokens": 48}
SECTION: dict[str, Any] = {
    "enabled": True,
    "ppo": {**RL, "minibatches": 1},
    "ask": 12,
    "rejection": SFT,
    "second": {**RL, "kl_coef": 0.001, "temperature": 0.7},
    "student": {"hidden_size": 32, "num_hidden_layers": 2},
    "student_pretrain": {"steps": 1, "batch_size": 2, "seq_len": 64},
    "student_sft": SFT,
    "distill": SFT,
}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    changes: dict[str, Any] = {f"grpo.{k}": v for k, v in RL.items()}
    changes |= {"evaluation.problems": 2, "evaluation.levels": ["chain/3", "chain/4"]}
    recipe = recipes.load("nano", changes)
    out = tmp_path / "run"
    found = open_run(
        recipes.with_section(recipe, "r1", SECTION), out, Console(), progress=False
    )
    for stage in ("base", "sft", "grpo"):
        # The fixtures are halves; a run keeps its models in single precision.
        hub.save_pretrained(hub.from_pretrained(NANO / stage).float(), out / stage)
    R1Tokenizer.load(NANO / "sft").save(out / "tokenizer")
    return found


@pytest.mark.slow
def test_every_stage_runs_and_is_not_run_again(context: Context) -> None:
    r1.make_all(context)
    stages = {r["stage"] for r in metrics.read(context.dir / "metrics.jsonl")}
    assert stages == {
        "ppo",
        "rejection",
        "second",
        "student_base",
        "student_traces",
        "student_logits",
        "student_sft",
        "student_grpo",
    }
    kept = json.loads((context.dir / "results" / "accepted.json").read_text())
    assert 0 < kept["accepted"] <= kept["asked"] == 24
    small = context.model("student_logits").config
    assert (small.hidden_size, small.num_hidden_layers) == (32, 2)
    assert set(r1.costs(context)) == stages
    before = (context.dir / "metrics.jsonl").read_bytes()
    r1.make_all(context)
    assert (context.dir / "metrics.jsonl").read_bytes() == before
    report = reported(context)
    assert [r.policy for r in report.r1] == list(r1.SHOWN)
    assert all(r.budget_tokens for r in report.r1)
    assert {s.name for s in report.stages} == stages | {"sft", "grpo"}
    assert [r.kind for r in table.r1_rows(report)].count("trained") == 1
    assert [r.result.policy for r in table.headline_rows(report)] == ["sft", "grpo"]


def reported(context: Context) -> Report:
    """The run's report, as if it had trained the models that it was given."""
    context.cached("mixture", lambda: {"domains": {}, "heldout_bytes": {}})
    measure, ways = Measure(context), (Way("sft"), Way("grpo"))
    given = {w.policy: StageResult(w.policy, 1, 1.0, 10) for w in ways}
    read = [(w, "test", measure.evaluate(w, "test")) for w in ways]
    return summary.build(context, measure, given, read, {}, [], 1.0)


def test_a_model_that_is_never_right_has_nothing_to_imitate(context: Context) -> None:
    shutil.rmtree(context.dir / "grpo")
    shutil.copytree(NANO / "base", context.dir / "grpo")
    with pytest.raises(R1Error, match=r"r1.ask: none of 24 answers"):
        r1.make_rejection(context)


def test_examples_are_mixed_by_share() -> None:
    at = r1.mixed(["good"], ["talk"], 0.25, seed=3)  # type: ignore[list-item]
    drawn = [at(i) for i in range(2000)]
    assert 0.2 < drawn.count("talk") / 2000 < 0.3  # type: ignore[arg-type]
    assert drawn == [at(i) for i in range(2000)]


def test_a_section_too_long_for_the_context_is_refused_early() -> None:
    with pytest.raises(R1Error, match=r"r1\.rejection\.seq_len: 900 tokens exceed"):
        recipes.load("nano", {"r1.enabled": True, "r1.rejection.seq_len": 900})
