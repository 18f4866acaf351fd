"""Can RL learn what no demonstration shows? Facts held out of supervised learning.

    python tests/benchmarks/capability.py SEED [OUT]

A chain such as 3+4*2 (mod 10) needs a fact for each operation, `3+4=7`. A quarter
of the 300 facts is held out: no demonstration contains one. The start is the base
of chapters/fixtures, fine-tuned on such demonstrations, all of them reasoned and
right: whatever elicitation could give, it has. RL sees problems with all facts,
and of an answer only whether it is right. It samples at temperature 1.5, because
the start is sure of its wrong facts (at 1.0, 60 steps moved them from 33 % to 40 %).
Expert iteration is run at both: it falls apart on samples of 1.5.
Every rival starts from the same model and gets the tokens that RL has read and
written. Writes results/r1/capability/seedN.json.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import answer, majority
from r1lite.generation import Sampling
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.tasks import Problem, problems, stream
from r1lite.tasks.problem import text_hash
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig
from r1lite.training.rejection import ExpertConfig, expert_iteration
from r1lite.training.sft import ExampleAt, SFTConfig, sft

ROOT = Path(__file__).parents[2]
BASE = ROOT / "chapters" / "fixtures" / "nano" / "base"
LEVELS = ("chain/3", "chain/4")
SHARES = dict.fromkeys(LEVELS, 1.0)
NEW = 40
SFT_STEPS, SFT_TOKENS = 150, 2048
RL: dict[str, Any] = {
    "steps": 80,
    "questions": 32,
    "group_size": 8,
    "max_new_tokens": NEW,
    "temperature": 1.5,
}


def held_out(problem: Problem) -> bool:
    """Does a step of it use one of the facts that are never demonstrated?"""
    facts = (step.partition("=")[0] for step in problem.steps)
    return any(text_hash(f"fact {fact}") % 4 == 0 for fact in facts)


def demonstrations(tokenizer: R1Tokenizer, seed: int, all_facts: bool) -> ExampleAt:
    """Right, reasoned examples; by default without the held-out facts."""
    at = stream(SHARES, seed).problem_at

    def example_at(i: int) -> chat.Example:
        k = 40 * i
        while held_out(at(k)) and not all_facts:
            k += 1
        p = at(k)
        return chat.example(tokenizer, p.question, p.reasoning, p.answer)

    return example_at


class Bench:
    """Problems to measure on and how it is done."""

    def __init__(self, tokenizer: R1Tokenizer, split: str, count: int) -> None:
        self.tokenizer = tokenizer
        found = [
            p
            for level in LEVELS
            for p in problems(*_family(level), split, 4 * count, 0)
        ]
        self.asked = {
            "shown facts": [p for p in found if not held_out(p)][:count],
            "held-out facts": [p for p in found if held_out(p)][:count],
        }

    def accuracy(
        self, model: R1Model, temperature: float = 0.0, n: int = 1, think: bool = False
    ) -> dict[str, dict[str, float]]:
        """Shares right on both kinds; with n > 1 by vote and by any as well."""
        stop = (self.tokenizer.eos_id,)
        how = Sampling(NEW, temperature, stop_ids=stop, seed=5)
        found = {}
        for name, asked in self.asked.items():
            items = answer(model, self.tokenizer, asked, how, n, think)
            right = [r.score.accuracy for r in items]
            steps = [(r.parsed.reasoning or "").strip() for r in items]
            groups = [items[i : i + n] for i in range(0, len(items), n)]
            found[name] = {
                "right": fmean(right),
                "right reasoning": fmean(
                    s == r.problem.reasoning for s, r in zip(steps, items, strict=True)
                ),
                "length": fmean(len(r.response) for r in items),
            }
            if n > 1:
                any_right = [max(r.score.accuracy for r in g) for g in groups]
                found[name] |= {
                    "majority": fmean(map(majority, groups)),
                    "any": fmean(any_right),
                }
        return found


def _family(level: str) -> tuple[str, int]:
    name, number = level.split("/")
    return name, int(number)


def main(seed: int, out: Path) -> None:
    """Train and measure everything of one seed."""
    torch.set_num_threads(1)
    tokenizer = R1Tokenizer.load(BASE)
    folder = Path(tempfile.mkdtemp())
    log = MetricsLog(folder, tensorboard=False)
    run = Run(folder, seed, log, checkpoint_seconds=1e9, progress=False)
    test = Bench(tokenizer, "test", 192)
    validation = Bench(tokenizer, "validation", 96)
    file = out / f"seed{seed}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result["seed"] = seed
    optim = OptimConfig(name="adamw", lr=5e-4, weight_decay=0.0)

    def trained(
        name: str, start: R1Model, train: Callable[[R1Model], object]
    ) -> R1Model:
        model, began = copy.deepcopy(start), time.perf_counter()
        if name in result and name != "start":
            return model
        train(model)
        result[name] = test.accuracy(model)
        result[name]["seconds"] = round(time.perf_counter() - began, 1)
        print(name, json.dumps(result[name]), flush=True)
        return model

    def supervised(name: str, steps: int, all_facts: bool = False, first: int = 0):
        config = SFTConfig(steps=steps, tokens=SFT_TOKENS, seq_len=128)
        shown = demonstrations(tokenizer, 100 + seed, all_facts)
        return lambda m: sft(run, name, m, config, lambda i: shown(i + first))

    base = from_pretrained(BASE).float()
    start = trained("start", base, supervised("start", SFT_STEPS))
    problem_at = stream(SHARES, 200 + seed).problem_at
    how = GRPOConfig(**RL, minibatches=2, optim=optim)
    trained("grpo", start, lambda m: grpo(run, m, tokenizer, how, problem_at))
    for name, temperature in (("expert", 1.0), ("expert, T=1.5", 1.5)):
        own = ExpertConfig(**RL | {"temperature": temperature}, optim=optim)
        trained(
            name,
            start,
            lambda m, own=own: expert_iteration(
                run, m, tokenizer, own, problem_at, f"expert{own.temperature}"
            ),
        )
    rows = run.log.rewind("grpo", RL["steps"])
    result["tokens"] = rows[-1]["tokens"] if rows else result["tokens"]
    more = round(result["tokens"] / SFT_TOKENS)
    trained("continued", start, supervised("more", more, first=SFT_STEPS * SFT_TOKENS))
    trained("all facts shown", base, supervised("all", SFT_STEPS, all_facts=True))
    result["made to think"] = test.accuracy(start, think=True)
    sweep = {t: validation.accuracy(start, t) for t in (0.0, 0.4, 0.7, 1.0)}
    best = max(sweep, key=lambda t: fmean(v["right"] for v in sweep[t].values()))
    result["best temperature"] = test.accuracy(start, best) | {"temperature": best}
    result["16 samples of start"] = test.accuracy(start, 1.0, 16)
    keep = ("step", "accuracy", "entropy", "frac_all_wrong", "frac_zero_std", "kept")
    for stage in ("grpo", "expert1.0", "expert1.5"):
        rows = run.log.rewind(stage, RL["steps"])
        if rows:
            result[f"log of {stage}"] = [
                {k: round(r[k], 4) for k in keep if k in r} for r in rows
            ]
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    target = ROOT / "results" / "r1" / "capability"
    main(int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else target)
