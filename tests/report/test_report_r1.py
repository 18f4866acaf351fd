"""The rows of section `[r1]` in the report: theirs alone, on the same problems."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from r1lite.report import Evaluation, Report, Rung
from r1lite.report.html import render
from r1lite.report.table import headline_rows, r1_rows

RUNGS = {
    "sft": ("Cold start (stage 1)", None),
    "grpo": ("GRPO (stage 2)", None),
    "rejection": ("Rejection SFT (stage 3)", 0.61),
    "student_traces": ("Student, by traces", 0.37),
}


def with_rungs(report: Report, **changed: Any) -> Report:
    """The report with section [r1]; a policy's own accuracy or the report's."""
    like = report.select("grpo")
    evaluations = [
        Evaluation(
            policy=policy,
            family=e.family,
            level=e.level,
            n=changed.get("n", e.n),
            accuracy=accuracy,
            mean_length=20.0,
        )
        for policy, (_, accuracy) in RUNGS.items()
        if accuracy is not None
        for e in like
    ]
    rungs = [
        Rung(policy=policy, description=text, budget_tokens=12_300, budget_seconds=65)
        for policy, (text, _) in RUNGS.items()
    ]
    data = report.model_dump()
    data["evaluations"] += [e.model_dump() for e in evaluations]
    data["r1"] = [r.model_dump() for r in rungs]
    return Report.model_validate(data)


def test_the_stages_have_a_section_of_their_own(full_report: Report) -> None:
    report = with_rungs(full_report)
    page = render(report, {})
    for part in (
        'id="recipe"',
        'href="#recipe"',
        "Rejection SFT (stage 3)",
        "61.0 %",
        "37.0 %",
        "12.3 k tokens",
        "1 min 05 s",
    ):
        assert part in page, part
    rows = r1_rows(report)
    assert [r.result.policy for r in rows] == list(RUNGS)
    assert [r.kind for r in rows] == ["start", "trained", "start", "start"]


def test_the_headline_and_its_verdict_stay_as_they_were(full_report: Report) -> None:
    report = with_rungs(full_report)
    assert headline_rows(report) == headline_rows(full_report)
    assert report.verdicts == full_report.verdicts


def test_a_run_without_the_section_does_not_speak_of_it(full_report: Report) -> None:
    assert "four stages" not in render(full_report, {})


def test_rows_on_other_problems_are_refused(full_report: Report) -> None:
    with pytest.raises(ValidationError, match="r1: rejection was measured on other"):
        with_rungs(full_report, n=100)


def test_a_row_without_an_evaluation_is_refused(full_report: Report) -> None:
    data = full_report.model_dump() | {"r1": [{"policy": "x", "description": "y"}]}
    with pytest.raises(ValidationError, match="r1: no evaluation on test for x"):
        Report.model_validate(data)
