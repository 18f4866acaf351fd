"""report.json is checked, whole, and cannot claim more than its numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from r1lite.errors import R1Error
from r1lite.report import Control, Evaluation, Goal, Headline, Machine, Report
from r1lite.report.files import read_metrics
from r1lite.report.machine import this_machine
from r1lite.report.results import median_and_range, pool
from r1lite.report.verdict import wilson


def evaluation(**changes: Any) -> Evaluation:
    values: dict[str, Any] = {"policy": "grpo", "family": "chain", "level": 2}
    return Evaluation(**(values | {"n": 100, "accuracy": 0.5} | changes))


def rewrite(run: Path, **changes: Any) -> None:
    path = run / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path, full_report: Report) -> None:
    full_report.save(tmp_path)
    assert Report.load(tmp_path) == full_report


def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, full_report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = full_report.save(tmp_path)
    old = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(R1Error, match=r"No space left on device.*free disk"):
        full_report.model_copy(update={"seed": 7}).save(tmp_path)
    assert path.read_text() == old
    assert os.listdir(tmp_path) == ["report.json"]


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(R1Error, match="no such file; the run has not finished"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "many"}, "seed: Input should be a valid integer"),
        ({"speed": 3}, "speed: Extra inputs are not permitted"),
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"recipe": None}, "recipe: Input should be a valid string"),
    ],
)
def test_a_bad_field_is_named_in_one_line(
    tmp_path: Path, full_report: Report, changes: dict[str, Any], message: str
) -> None:
    full_report.save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(R1Error) as raised:
        Report.load(tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "nano"'])
def test_a_broken_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(R1Error, match="run the recipe again"):
        Report.load(tmp_path)


def test_a_file_of_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(R1Error, match="cannot be read"):
        Report.load(tmp_path)


def test_a_verdict_written_by_hand_is_replaced(
    tmp_path: Path, full_report: Report
) -> None:
    full_report.save(tmp_path)
    claim = {"family": "all", "outcome": "beyond every control", "text": "Taught!"}
    rewrite(tmp_path, verdicts=[claim])
    loaded = Report.load(tmp_path)
    assert loaded.verdicts == full_report.verdicts
    assert loaded.verdicts[0].outcome == "elicitation"


def test_one_verdict_over_all_and_one_for_each_of_several_families(
    full_report: Report,
) -> None:
    assert [v.family for v in full_report.verdicts] == ["all", "chain", "countdown"]
    single = [e for e in full_report.evaluations if e.family == "chain"]
    data = full_report.model_dump() | {"evaluations": single}
    assert [v.family for v in Report.model_validate(data).verdicts] == ["all"]


def test_save_checks_what_was_appended_since(
    tmp_path: Path, full_report: Report
) -> None:
    report = full_report.model_copy(deep=True)
    report.evaluations.append(report.evaluations[0])
    with pytest.raises(R1Error, match="is there twice"):
        report.save(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_interval_is_filled_in_and_checked() -> None:
    found = evaluation(accuracy=0.9, n=512)
    assert (found.ci_low, found.ci_high) == wilson(0.9, 512)
    with pytest.raises(ValidationError, match="outside"):
        evaluation(accuracy=0.9, ci_low=0.1, ci_high=0.2)


def test_a_length_that_is_not_a_number_was_not_measured() -> None:
    assert evaluation(mean_length=float("nan")).mean_length is None
    with pytest.raises(ValidationError):
        evaluation(accuracy=float("nan"))


def build(machine: Machine, **parts: Any) -> Report:
    return Report(recipe="test", seed=0, machine=machine, **parts)


def test_a_control_without_numbers_is_refused(machine: Machine) -> None:
    control = Control(id=1, description="forced", policy="sft", forced_think=True)
    with pytest.raises(ValidationError, match="no evaluation on test for control 1"):
        build(machine, evaluations=[evaluation()], controls=[control])


@pytest.mark.parametrize("other", [{"n": 99}, {"level": 3}, {"family": "sum"}])
def test_a_control_on_other_problems_is_refused(
    machine: Machine, other: dict[str, Any]
) -> None:
    control = Control(id=3, description="clean", policy="clean")
    rows = [evaluation(), evaluation(policy="clean", **other)]
    with pytest.raises(ValidationError, match="other problems than grpo"):
        build(machine, evaluations=rows, controls=[control])


def test_family_all_is_kept_for_pooling(machine: Machine) -> None:
    with pytest.raises(ValidationError, match="pooled by the report"):
        build(machine, evaluations=[evaluation(family="all")])


def test_pooling_weighs_by_problems() -> None:
    rows = [
        evaluation(n=100, accuracy=0.2, mean_length=10.0, format=1.0),
        evaluation(n=300, accuracy=0.6, mean_length=30.0, format=None),
    ]
    found = pool(rows)
    assert (found.n, found.accuracy) == (400, pytest.approx(0.5))
    assert found.mean_length == pytest.approx(25.0)
    assert found.format is None, "half a measurement is none"
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(0.5, 400))


def test_pooling_many_ones_stays_a_share() -> None:
    rows = [evaluation(level=i, n=3, accuracy=1.0, format=1.0) for i in range(49)]
    assert pool(rows).accuracy == 1.0


def test_headline_chooses_before_and_after(machine: Machine) -> None:
    rows = [
        evaluation(policy="base", decode="T=1", accuracy=0.1),
        evaluation(policy="ppo", decode="T=1", accuracy=0.8),
    ]
    line = Headline(before="base", after="ppo", decode="T=1")
    report = build(machine, evaluations=rows, headline=line)
    before, after = report.before(), report.after()
    assert before is not None and before.accuracy == pytest.approx(0.1)
    assert after is not None and after.accuracy == pytest.approx(0.8)
    assert report.verdicts[0].outcome == "incomplete"


def test_goals_know_whether_they_are_met() -> None:
    assert Goal(name="g", value=0.9, at_least=0.9).met
    assert not Goal(name="g", value=0.41, at_most=0.4).met
    assert not Goal(name="g", value=None, at_most=0.4).met
    assert Goal(name="g", value=4.0, at_least=3, unit="x").promise == "at least 3x"


def test_median_and_range() -> None:
    assert median_and_range([0.9, 0.5, 0.8]) == (0.8, 0.5, 0.9)


def test_metrics_survive_a_kill(tmp_path: Path) -> None:
    lines = [
        '{"stage": "sft", "step": 1, "loss": 3.0}',
        '{"stage": "pretrain", "step": 2, "loss": 2.0}',
        '{"stage": "sft", "step": 2, "lo',
        '{"stage": "sft", "step": 1, "loss": 2.5}',
        '{"stage": "sft", "step": 0, "loss": NaN}',
        '{"stage": "sft", "step": Infinity}',
        "[1]",
        '{"stage": "sft"}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = read_metrics(tmp_path)
    assert list(found) == ["sft", "pretrain"]
    assert [r["step"] for r in found["sft"]] == [0, 1]
    assert found["sft"][1]["loss"] == 2.5, "the last record of a step counts"


def test_no_metrics_are_no_stages(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}


def test_this_machine_is_described() -> None:
    here = this_machine()
    assert here.cores >= 1 and here.cpu and here.python and here.torch
