"""PPO on given answers, then a reward model on made-up pairs; alone, or under torchrun.

Writes rank 0's log and the weights of both.

ppo_workers.py OUT PARALLEL_AS_JSON [MICRO_ROWS]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from support.models import tiny_config

from r1lite.data.chat import Response
from r1lite.model import R1Model
from r1lite.tasks import Problem
from r1lite.tasks.reward import Score
from r1lite.training import ppo as stage
from r1lite.training.compute import ComputeConfig, ParallelConfig, open_team
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig
from r1lite.training.ppo import PPOConfig
from r1lite.training.preferences import Pair
from r1lite.training.reward_model import (
    RewardModelConfig,
    ScoreModel,
    train_reward_model,
)
from r1lite.training.rollout import Rollout

QUESTIONS, GROUP = 5, 3


def answers(step: int) -> list[Rollout]:
    """The same on every rank: ragged answers with made-up log-probabilities."""
    dice = torch.Generator().manual_seed(step)
    made = []
    for i in range(QUESTIONS * GROUP):
        length = 1 + int(torch.randint(9, (1,), generator=dice))
        ids = torch.randint(3, 61, (4 + length,), generator=dice).tolist()
        logprobs = (-4 + torch.rand(length, generator=dice)).tolist()
        problem = Problem("chain", 3, "q", "1", (), f"{step} {i}")
        score = Score(float(i % 2), 1.0, i % 2 + 0.1 * (i % 3))
        parsed = Response(None, "1", True, False)
        made.append(Rollout(problem, ids[:4], ids[4:], logprobs, parsed, score))
    return made


def pair_at(i: int) -> Pair:
    """The i-th comparison: replies of several lengths, the better one first."""
    dice = torch.Generator().manual_seed(100 + i)
    ids = torch.randint(3, 61, (12,), generator=dice).tolist()
    return Pair(ids[:3], ids[3 : 5 + i % 3], ids[8 : 10 + i % 2], "answer")


def main(out: Path, parallel: dict[str, Any], micro_rows: int) -> None:
    """Three steps, each read twice."""
    torch.set_num_threads(1)
    steps = iter(range(99))

    def given(run: Run, model: R1Model, *_: object) -> list[Rollout]:
        run.team.whole(model)  # what the sampler would be made of
        model.train()
        return answers(next(steps))

    stage.team_rollouts = given  # type: ignore[assignment]
    compute = ComputeConfig(micro_rows=micro_rows)
    layout = ParallelConfig(**parallel)
    team = open_team(layout, compute)
    if team.first:
        out.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(out, tensorboard=False)
    run = Run(out, 0, log, progress=False, team=team, compute=compute, parallel=layout)
    torch.manual_seed(0)
    model = R1Model(tiny_config())
    config = PPOConfig(
        steps=3,
        questions=QUESTIONS,
        group_size=GROUP,
        epochs=2,
        minibatches=2,
        lam=0.95,
        kl_coef=0.05,
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.0),
    )
    tokenizer: Any = SimpleNamespace(eos_id=1)

    def problem_at(i: int) -> Problem:
        return Problem("chain", 3, "q", "1", (), str(i))

    stage.ppo(run, model, tokenizer, config, problem_at)
    judge = ScoreModel.of(model)
    rewards = RewardModelConfig(steps=3, pairs=7)
    train_reward_model(run, judge, rewards, pair_at)
    weights = dict(model.state_dict())
    weights |= {f"judge.{k}": v for k, v in team.whole(judge).state_dict().items()}
    if team.first:
        save_file({k: v.clone() for k, v in weights.items()}, out / "model.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


def _words(given: Sequence[str]) -> tuple[Path, dict[str, Any], int]:
    return Path(given[0]), json.loads(given[1]), int(given[2]) if given[2:] else 0


if __name__ == "__main__":
    main(*_words(sys.argv[1:]))
