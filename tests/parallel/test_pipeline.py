"""Pipelines in real processes equal one process: term by term, name by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.launch import torchrun
from parallel.pipeline_workers import CLIP, Case, resumes, train

from r1lite.errors import R1Error
from r1lite.parallel.timetable import idle_share, timetable

# One process is a case of its own to torch.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Fifty steps need data without near ties between experts: where two scores differ
# by less than 1e-6, rounding picks, and one other pick is seen in the 4th decimal.
CASES = {
    2: [
        "pp2-docs",
        "pp2-dualpipev-docs",
        "pp2-tied:10",
        "pp2-dualpipev-tied:10",
        "pp2-dualpipev-again:10",
    ],
    4: ["pp2-docs:10", "pp2-ep2:10", "pp2-ep2-dualpipev-docs:10", "pp4:10"],
}
ALL = [(ranks, name) for ranks, names in CASES.items() for name in names]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """What each layout found, and what its first rank printed."""
    found = {}
    for ranks, names in CASES.items():
        out = tmp_path_factory.mktemp(f"ranks{ranks}")
        found[ranks] = out, torchrun("pipeline_workers.py", ranks, out, *names)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process finds; a case of fewer steps is the start of a longer one."""
    out, known = tmp_path_factory.mktemp("alone") / "one.pt", {}

    def find(case: Case) -> dict[str, Any]:
        key = case.tied, case.documents, case.steps
        if key not in known:
            train(out, case)
            known[key] = torch.load(out, weights_only=True)
        return known[key]

    return find


@pytest.mark.parametrize(("ranks", "name"), ALL)
def test_equals_one_process(ranks: int, name: str, alone: Any, together: Any) -> None:
    case = Case(name)
    one = alone(case)
    many = torch.load(together[ranks][0] / f"{case.name}.pt", weights_only=True)
    assert len(many["means"]) == case.steps
    assert one["means"][0, 0] - one["means"][-4:, 0].max() > 0.1  # it does learn
    assert 0 < int((one["norms"] > CLIP).sum()) < case.steps  # some steps were clipped
    assert one["means"][:, 2].min() > 0.01  # the balance loss takes part
    torch.testing.assert_close(many["means"], one["means"], atol=1e-5, rtol=0)
    torch.testing.assert_close(many["norms"], one["norms"], atol=1e-4, rtol=1e-4)
    assert 0 < many["held"] < one["held"]
    for kind, atol in (("gradients", 1e-6), ("load", 0), ("state", 1e-5)):
        assert many[kind].keys() == one[kind].keys()
        for key, value in one[kind].items():
            torch.testing.assert_close(
                many[kind][key],
                value,
                atol=atol,
                rtol=1e-4 if atol else 0,
                msg=lambda m, n=key: f"{n}: {m}",
            )


def test_saved_on_two_stages_resumed_on_one_process(together: Any) -> None:
    """Names are those of the whole model, and so is the optimizer's state."""
    root = together[2][0] / "checkpoints"
    wanted = torch.load(root / "wanted.pt", weights_only=True)
    means, found = resumes(root)
    assert means == pytest.approx(wanted["means"], abs=1e-5)
    for kind in found:
        torch.testing.assert_close(found[kind], wanted[kind], atol=1e-5, rtol=1e-5)


def test_refusals(together: Any) -> None:
    lines = [x for x in together[2][1].splitlines() if x.startswith("refused")]
    assert lines == [
        "refused: micro_batches: 1 are fewer than the 2 stages of 1f1b; give at "
        "least 2",
        "refused: micro_batches: 3 are fewer than the 4 stages of dualpipev; give at "
        "least 4",
        "refused: schedule: 'gpipe' is not built; use 1f1b or dualpipev",
        "refused: pp: 4 stages are more than the 3 layers; choose fewer stages "
        "(dualpipev makes two a rank) or a deeper model",
        "refused: batch: 6 rows do not divide among 1 ranks with 4 micro-batches; "
        "choose a multiple of 4",
    ]


@pytest.mark.parametrize(("pp", "micro"), [(2, 4), (4, 8), (4, 16)])
def test_the_bubble(pp: int, micro: int) -> None:
    """1F1B idles as its formula says; DualPipeV a sixth of that time."""
    line, v = timetable("1f1b", pp, micro), timetable("dualpipev", pp, micro)
    assert idle_share(line) == pytest.approx((pp - 1) / (micro + pp - 1))
    end = max(t.stop for t in v)
    assert end == pytest.approx(3 * micro + (pp - 1) / 2)


@pytest.mark.parametrize(("schedule", "stages"), [("1f1b", 3), ("dualpipev", 6)])
def test_a_timetable_is_possible(schedule: Any, stages: int) -> None:
    """Everything is done once, after what it needs, and no rank does two things."""
    tasks = timetable(schedule, 3, 7)
    halves = [t for t in tasks if t.kind in "BI"]
    for done in ([t for t in tasks if t.kind == "F"], halves):
        assert len({(t.stage, t.micro_batch) for t in done}) == len(done) == stages * 7
    at = {(t.stage, "B" if t.kind == "I" else t.kind, t.micro_batch): t for t in tasks}
    for t in tasks:
        if t.kind == "F" and t.stage:
            assert at[t.stage - 1, "F", t.micro_batch].stop <= t.start
        if t.kind in "BI":
            before = (t.stage, "F") if t.stage == stages - 1 else (t.stage + 1, "B")
            assert at[(*before, t.micro_batch)].stop <= t.start
        if t.kind == "W":
            assert at[t.stage, "B", t.micro_batch].stop <= t.start
    for rank in range(3):
        mine = [t for t in tasks if t.rank == rank]
        assert all(a.stop <= b.start for a, b in pairwise(mine))


def test_too_few_micro_batches_make_no_timetable() -> None:
    with pytest.raises(R1Error, match="fewer than the 4 stages of dualpipev"):
        timetable("dualpipev", 2, 3)
