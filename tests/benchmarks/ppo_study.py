"""PPO on the nano fixture, measured: beside GRPO, by lambda, and hacked.

    python tests/benchmarks/ppo_study.py main    # GRPO's budget, verifier's reward
    python tests/benchmarks/ppo_study.py lambda  # 0.95 against 1.0, three seeds
    python tests/benchmarks/ppo_study.py hack    # a reward model as the reward

Each part starts from chapters/fixtures/nano/sft and writes results/ppo/PART: the
raw metrics.jsonl of every training, and summary.json. Chapter 09 reads those.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from r1lite import R1Model, from_pretrained
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import answer, by_level, pooled_accuracy
from r1lite.generation import Sampling
from r1lite.report.machine import this_machine
from r1lite.tasks import Problem, problems, stream
from r1lite.training.loop import Run, StageResult
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig
from r1lite.training.ppo import PPOConfig, RewardFunction, ppo
from r1lite.training.preferences import sampled_pairs
from r1lite.training.reward_checks import length_bias, pair_accuracy, reliability
from r1lite.training.reward_model import (
    RewardModelConfig,
    ScoreModel,
    score_pairs,
    score_rollouts,
    train_reward_model,
)
from r1lite.training.rollout import Rollout, rollouts

ROOT = Path(__file__).parents[2]
START = ROOT / "chapters" / "fixtures" / "nano" / "sft"
OUT = ROOT / "results" / "ppo"
SHARES = {f"chain/{n}": 1.0 for n in (3, 4, 5, 6)} | {"expression/3": 1.0}
SHORT = {"chain/3": 1.0, "chain/4": 1.0}
TOKENIZER = R1Tokenizer.load(START)


def policy() -> R1Model:
    """The SFT model."""
    return from_pretrained(START).float()


def train(
    part: str,
    name: str,
    config: PPOConfig,
    shares: dict[str, float],
    seed: int = 0,
    reward: RewardFunction | None = None,
) -> tuple[R1Model, StageResult, list[dict[str, Any]]]:
    """One PPO run; its metrics.jsonl is kept as NAME.jsonl."""
    model = policy()
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), tensorboard=False)
        run = Run(Path(folder), seed, log, progress=False, checkpoint_seconds=1e9)
        problem_at = stream(shares, 100 + seed).problem_at
        result = ppo(run, model, TOKENIZER, config, problem_at, reward)
        target = OUT / part / f"{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(log.path, target)
        rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    print(name, {k: rows[-1][k] for k in ("reward", "accuracy", "length", "time")})
    return model, result, rows


def exam(split: str, count: int, shares: dict[str, float]) -> list[Problem]:
    """`count` unique problems of every level."""
    named = [name.split("/") for name in shares]
    return [p for f, n in named for p in problems(f, int(n), split, count, 0)]


def greedy(model: R1Model, asked: list[Problem]) -> dict[str, Any]:
    """Greedy accuracy, pooled and by level."""
    how = Sampling(64, 0.0, stop_ids=(TOKENIZER.eos_id,))
    items = answer(model, TOKENIZER, asked, how)
    levels = by_level(items)
    return {
        "accuracy": round(pooled_accuracy(levels), 4),
        "n": len(items),
        "length": round(fmean(len(r.response) for r in items), 2),
        "format": round(fmean(x.format for x in levels), 4),
        "levels": {f"{x.family}/{x.level}": round(x.accuracy, 4) for x in levels},
    }


def main_run() -> dict[str, Any]:
    """The stage table's row: as many steps, questions and answers as GRPO."""
    config = PPOConfig(steps=40, questions=64, group_size=8)
    before = greedy(policy(), exam("validation", 256, SHARES))
    model, result, _ = train("main", "seed0", config, SHARES)
    return {
        "config": config.model_dump(),
        "seconds": result.seconds,
        "tokens": result.tokens,
        "before_validation": before,
        "after_validation": greedy(model, exam("validation", 256, SHARES)),
        "after_test": greedy(model, exam("test", 512, SHARES)),
    }


def lambda_runs() -> dict[str, Any]:
    """A quarter of the budget, so that the curves have not met yet."""
    found: dict[str, Any] = {}
    for seed in (0, 1, 2):
        for lam in (0.95, 1.0):
            config = PPOConfig(steps=30, questions=32, group_size=4, lam=lam)
            name = f"lam{lam}_seed{seed}"
            _, _, rows = train("lambda", name, config, SHARES, seed)
            curve = [r["accuracy"] for r in rows]
            found[name] = {
                "mean_accuracy": round(fmean(curve), 4),
                "last_5": round(fmean(curve[-5:]), 4),
                "explained": round(fmean(r["explained"] for r in rows[-5:]), 3),
            }
    return found


def sampled(split: str, questions: int, seed: int) -> list[Rollout]:
    """Eight answers of the SFT model to each question."""
    problem_at = stream(SHORT, seed, split).problem_at
    asked = [problem_at(i) for i in range(questions)]
    how = Sampling(48, 1.0, stop_ids=(TOKENIZER.eos_id,), seed=seed)
    return rollouts(policy().eval(), TOKENIZER, asked, how, 8)


def reward_model() -> tuple[ScoreModel, dict[str, Any]]:
    """Trained on the SFT model's own right and wrong answers."""
    pairs = sampled_pairs(sampled("train", 256, 1), 8)
    held = sampled_pairs(sampled("validation", 192, 2), 8)
    model = ScoreModel.of(policy())
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), tensorboard=False)
        run = Run(Path(folder), 0, log, progress=False)
        config = RewardModelConfig(steps=40, pairs=16)
        train_reward_model(run, model, config, lambda i: pairs[i % len(pairs)])
    rewards = score_pairs(model, held)
    bias = length_bias(rewards, held)
    return model, {
        "pairs": len(pairs),
        "held_out": len(held),
        "accuracy": vars_of(pair_accuracy(rewards)),
        "calibration_error": reliability(rewards).error,
        "length_correlation": bias.correlation,
        "same_length": vars_of(bias.same_length),
    }


def vars_of(share: Any) -> dict[str, float] | None:
    """A Share as JSON."""
    names = ("value", "n", "low", "high")
    return share and {k: round(getattr(share, k), 4) for k in names}


def hack_runs() -> dict[str, Any]:
    """The reward model without a leash, with one, and the verifier."""
    judge, described = reward_model()
    quick = OptimConfig(lr=5e-4, weight_decay=0.0, warmup_steps=5)
    config = PPOConfig(steps=60, questions=16, group_size=4, optim=quick)
    few = exam("validation", 32, SHORT)
    found: dict[str, Any] = {"reward_model": described}
    ways: dict[str, tuple[float, Callable[[list[Rollout]], Tensor] | None]] = {
        "model": (0.0, lambda items: score_rollouts(judge, items)),
        "model_kl0.1": (0.1, lambda items: score_rollouts(judge, items)),
        "model_kl0.3": (0.3, lambda items: score_rollouts(judge, items)),
        "verifier": (0.0, None),
    }
    for name, (kl_coef, reward) in ways.items():
        how = config.model_copy(update={"kl_coef": kl_coef})
        model, _, rows = train("hack", name, how, SHORT, 0, reward)
        curve = [r["accuracy"] for r in rows]
        smooth = [fmean(curve[max(0, i - 2) : i + 1]) for i in range(len(curve))]
        best = smooth.index(max(smooth))
        found[name] = {
            "kl_coef": kl_coef,
            "first_accuracy": curve[0],
            "best_accuracy": round(smooth[best], 4),
            "best_step": best,
            "last_5_accuracy": round(fmean(curve[-5:]), 4),
            "last_5_reward": round(fmean(r["reward"] for r in rows[-5:]), 4),
            "greedy_validation": greedy(model, few),
        }
    return found


def main(parts: list[str]) -> None:
    """Run the named parts."""
    torch.set_num_threads(1)
    every = {"main": main_run, "lambda": lambda_runs, "hack": hack_runs}
    for part in parts:
        found = every[part]()
        found["machine"] = this_machine().model_dump()
        found["command"] = f"python tests/benchmarks/ppo_study.py {part}"
        (OUT / part).mkdir(parents=True, exist_ok=True)
        path = OUT / part / "summary.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:] or ["main", "lambda", "hack"])
