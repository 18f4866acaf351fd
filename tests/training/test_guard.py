"""The guard: skips spikes, lets drift and new levels pass, replays a log."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.training.guard import Guard, GuardConfig
from r1lite.training.loop import Run, Update, run_stage
from r1lite.training.metrics import read
from r1lite.training.optim import OptimConfig


def losses(n: int, seed: int = 0) -> list[float]:
    """A falling loss with the noise of small batches."""
    rng = random.Random(seed)
    return [3 + 4 * 0.98**i + rng.gauss(0, 0.05) for i in range(n)]


def test_a_normal_run_is_left_alone() -> None:
    for seed in range(20):
        guard = Guard(GuardConfig())
        assert [guard.judge(loss=x) for x in losses(400, seed)] == [None] * 400


def test_a_spike_is_skipped_and_not_learnt_from() -> None:
    guard = Guard(GuardConfig())
    for x in losses(60):
        guard.judge(loss=x)
    before = guard.limit("loss")
    reason = guard.judge(loss=9.0)
    assert reason is not None and reason.startswith("loss 9 is above ")
    assert guard.limit("loss") == before and guard.skipped == 1
    assert guard.judge(loss=losses(61)[-1]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number_is_skipped_from_the_first_step(bad: float) -> None:
    guard = Guard(GuardConfig(patience=3))
    assert guard.judge(loss=1.0, grad_norm=bad) is not None
    assert guard.judge(loss=bad) is not None
    with pytest.raises(R1Error, match=r"3 steps in a row.*learning rate"):
        guard.judge(loss=bad)


def test_a_good_step_ends_the_row() -> None:
    guard = Guard(GuardConfig(patience=2))
    for _ in range(5):
        assert guard.judge(loss=math.nan) is not None
        assert guard.judge(loss=1.0) is None


def test_a_new_level_is_accepted() -> None:
    guard = Guard(GuardConfig(patience=4))
    for _ in range(30):
        guard.judge(loss=2.0)
    found = [guard.judge(loss=5.0) is None for _ in range(6)]
    assert found == [False, False, False, True, True, True]


def test_few_steps_are_no_ground_to_judge() -> None:
    guard = Guard(GuardConfig(first=10))
    assert [guard.judge(loss=x) for x in (1, 1, 1, 50.0)] == [None] * 4
    assert guard.limit("grad_norm") == math.inf


def test_a_resumed_run_judges_alike() -> None:
    rows = [{"step": i, "loss": x, "lr": 1} for i, x in enumerate(losses(80))]
    rows[50]["loss"], rows[51]["loss"] = 30.0, math.nan
    whole, resumed = Guard(GuardConfig()), Guard(GuardConfig())
    whole.replay(rows)
    resumed.replay(rows[:51])
    resumed.replay(rows[51:])
    assert whole.skipped == resumed.skipped == 2
    assert whole.limit("loss") == resumed.limit("loss") < 10


@pytest.mark.parametrize("guarded", [True, False])
def test_a_stage_skips_the_spike_and_says_so(
    model: R1Model, run: Run, guarded: bool
) -> None:
    run.guard = GuardConfig(first=3) if guarded else None
    weights: list[torch.Tensor] = []

    def step(i: int, update: Update) -> dict[str, float]:
        weights.append(model.lm_head.weight.detach().clone())
        ids = torch.arange(i, i + 20)[None] % 250
        loss = model(ids).logits.float().logsumexp(-1).mean()
        (loss * (1000 if i == 6 else 1)).backward()
        return {"loss": loss.item(), "grad_norm": update(), "tokens": 20}

    run_stage(run, "guarded", model, OptimConfig(warmup_steps=1), 9, step)
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [True] * 6 + [not guarded] + [True]
    said = [r.get("skipped") for r in read(run.log.path)]
    assert [s is not None for s in said] == [i == 6 and guarded for i in range(9)]
    assert not guarded or str(said[6]).startswith("grad_norm ")


def test_steps_without_a_gradient_do_not_make_the_others_spikes() -> None:
    """RL whose answers all agree has norm 0, perhaps in most of its steps."""
    guard, rng = Guard(GuardConfig()), random.Random(0)
    for _ in range(300):
        norm = rng.choice([0.0, 0.0, rng.uniform(0.2, 0.4)])
        assert guard.judge(grad_norm=norm) is None
    assert guard.judge(grad_norm=30.0) is not None
