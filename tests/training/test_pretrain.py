"""Pretraining by tokens: the batch ramp and the phases, through kill and resume."""

from __future__ import annotations

import copy
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from r1lite.data.packing import PackedRows, Rows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.recipe import load
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig, lr_scale
from r1lite.training.pretrain import PretrainConfig, pretrain
from r1lite.training.schedule import BatchRamp, Phase

PLAIN = PretrainConfig(
    steps=6,
    batch_size=8,
    seq_len=16,
    optim=OptimConfig(name="muon", warmup_steps=2),
)
GROWING = PLAIN.model_copy(
    update={
        "ramp": BatchRamp(start=0.25, share=0.5, multiple=2),
        "phases": (Phase(share=0.5), Phase(share=0.5, end=0.1)),
    }
)


class Watched:
    """Rows that remember which were read, and stop at `stop` like a kill."""

    def __init__(self, rows: PackedRows, stop: int = 10**9) -> None:
        self.read: list[int] = []
        self._rows, self._stop = rows, stop

    def rows(self, first: int, count: int) -> Rows:
        if first >= self._stop:
            raise KeyboardInterrupt
        self.read += range(first, first + count)
        return self._rows.rows(first, count)


@pytest.fixture
def rows(tokenizer: R1Tokenizer) -> PackedRows:
    texts = [f"{i}+{j}={(i + j) % 10}" for i in range(10) for j in range(10)]
    return PackedRows([tokenizer.encode(t) for t in texts], tokenizer, 16, seed=3)


def new_run(folder: Path, every: float = 1e9) -> Run:
    folder.mkdir(exist_ok=True)
    log = MetricsLog(folder, tensorboard=False)
    return Run(folder, 0, log, checkpoint_seconds=every, progress=False)


def logged(run: Run) -> list[dict[str, Any]]:
    return run.log.rewind("pretrain", 10**9)


def test_growing_batches_read_the_same_rows(
    model: R1Model, rows: PackedRows, tmp_path: Path
) -> None:
    run, seen = new_run(tmp_path), Watched(rows)
    result = pretrain(run, model, GROWING, seen)
    assert seen.read == list(range(48))  # steps x batch_size, each once, in order
    assert result.tokens == GROWING.tokens == 48 * 16
    sizes = GROWING.plan().sizes
    assert sizes[0] == 2 and max(sizes) == 8 and all(n % 2 == 0 for n in sizes)
    found = logged(run)
    assert result.steps == len(found) == len(sizes) > 6
    assert [r["tokens"] for r in found] == [16 * n for n in accumulate(sizes)]


def test_the_rate_follows_the_tokens(
    model: R1Model, rows: PackedRows, tmp_path: Path
) -> None:
    run = new_run(tmp_path)
    pretrain(run, model, GROWING, rows)
    rates = [r["lr"] / GROWING.optim.muon_lr for r in logged(run)]
    sizes = GROWING.plan().sizes
    read = [sum(sizes[:i]) / 48 for i in range(len(sizes))]
    assert rates[0] == pytest.approx(0.5)  # the warm-up counts steps, as V3's does
    for share, rate in list(zip(read, rates, strict=True))[1:]:
        half = max(0.0, share - 0.5) / 0.5
        wave = 0.5 * (1 + math.cos(math.pi * half))
        assert rate == pytest.approx(0.1 + 0.9 * wave, abs=1e-6)
    assert rates[-1] < 0.5


def test_without_them_nothing_changes() -> None:
    """Nano's rate and batches are those of a run that counts steps."""
    config = load("nano").pretrain
    plan = config.plan()
    assert not config.by_tokens
    assert plan.sizes == [config.batch_size] * config.steps
    assert [plan.rows(i)[0] for i in (0, 1, 7)] == [0, 32, 224]
    for step in (0, 9, 10, 150, 151, 222, 299):  # and counted in tokens it is the same
        want = lr_scale(config.optim, step, config.steps)
        assert plan.scale(step) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("stop", [4, 20, 40])
def test_a_killed_stage_takes_the_same_path(
    model: R1Model, rows: PackedRows, tmp_path: Path, stop: int
) -> None:
    start = copy.deepcopy(model)
    once = new_run(tmp_path / "once")
    pretrain(once, model, GROWING, rows)
    cut = new_run(tmp_path / "cut", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(cut, copy.deepcopy(start), GROWING, Watched(rows, stop))
    again, seen = copy.deepcopy(start), Watched(rows)
    pretrain(cut, again, GROWING, seen)
    starts = [GROWING.plan().rows(i)[0] for i in range(GROWING.plan().steps)]
    assert seen.read[0] == min(s for s in starts if s >= stop)
    assert seen.read[-1] == 47
    for name, want in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], want), name
    kept = ("step", "tokens", "lr", "loss")
    a, b = ([[r[k] for k in kept] for r in logged(x)] for x in (once, cut))
    assert a == b


def test_a_plan_that_cannot_be_is_refused_before_training() -> None:
    for name, value, message in (
        ("pretrain.ramp", {"start": 0.0}, r"^pretrain\.ramp: start 0"),
        ("pretrain.ramp", {"multiple": 5}, r"^pretrain\.ramp\.multiple: 5 does not"),
        ("pretrain.phases", [{"share": 0.4}], r"^pretrain\.phases: the shares sum to"),
        ("r1.student_pretrain.ramp", {"start": 2.0}, r"^r1\.student_pretrain\.ramp"),
    ):
        with pytest.raises(R1Error, match=message):
            load("smoke", {name: value})
    for ranks, unit, fits in ((2, 1, True), (3, 1, False), (2, 2, True), (2, 4, False)):
        if fits:
            GROWING.plan().check_shares(ranks, unit)
        else:
            with pytest.raises(R1Error, match=r"ramp\.multiple"):
                GROWING.plan().check_shares(ranks, unit)


def test_the_fingerprint_knows_the_plan() -> None:
    prints = {
        load("smoke", changes).fingerprint()
        for changes in (
            {},
            {"pretrain.ramp.start": 0.5},
            {"pretrain.ramp": {"start": 0.5, "share": 0.5}},
            {"pretrain.phases": [{"share": 1.0}]},
        )
    }
    assert len(prints) == 4
