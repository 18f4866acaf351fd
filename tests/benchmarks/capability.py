"""Can RL learn what no demonstration shows? Facts held out of supervised learning.

    python tests/benchmarks/capability.py SEED [OUT]
    python tests/benchmarks/capability.py rounding SEED DRAW THREADS

A chain such as 3+4*2 (mod 10) needs a fact for each operation, `3+4=7`. A quarter
of the 300 facts is held out: no demonstration contains one. The start is the base
of chapters/fixtures, fine-tuned on such demonstrations, all of them reasoned and
right: whatever elicitation could give, it has. RL sees problems with all facts,
and of an answer only whether it is right. It samples at temperature 1.5, because
the start is sure of its wrong facts.
Expert iteration is run at both: it falls apart on samples of 1.5.
Every rival starts from the same model and gets the tokens that RL has read and
written. Writes results/r1/capability/seedN.json.

On one machine and one thread a start repeats to the last bit. Elsewhere sums round
otherwise, and 150 steps magnify that. `rounding` measures by how much: it trains a
start again, on so many threads, from a base whose weights are moved by one part in
ten million (draw 0: not moved), and adds it to rounding.json. With
ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 it computes as an older
processor does. A gain smaller than that spread is none.
"""

from __future__ import annotations

import copy
import functools
import hashlib
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
OUT = ROOT / "results" / "r1" / "capability"
LEVELS = ("chain/3", "chain/4")
SHARES = dict.fromkeys(LEVELS, 1.0)
NEW = 40
SFT_STEPS, SFT_TOKENS = 150, 2048
LAST_BITS = 1e-7
ROWS = (
    "start",
    "grpo",
    "expert",
    "expert, T=1.5",
    "continued",
    "all facts shown",
    "made to think",
    "best temperature",
    "16 samples of start",
)
RL: dict[str, Any] = {
    "steps": 80,
    "questions": 32,
    "group_size": 8,
    "max_new_tokens": NEW,
    "temperature": 1.5,
}
KEPT = ("step", "accuracy", "entropy", "frac_all_wrong", "frac_zero_std", "kept")


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


class Record:
    """The file of one seed, written anew after every row: a run may be cut off.

    A row counts against the start of its own run only, so a file that lies
    there is written over, never continued.
    """

    def __init__(self, file: Path, seed: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self.rows: dict[str, Any] = {
            "seed": seed,
            "finished": False,
            "threads": torch.get_num_threads(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
        }

    def __setitem__(self, name: str, row: Any) -> None:
        self.rows[name] = row
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n")


def fingerprint(model: R1Model) -> str:
    """The first 16 hex digits of the sha256 of all weights, to the last bit."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def supervised(
    run: Run,
    tokenizer: R1Tokenizer,
    name: str,
    steps: int,
    all_facts: bool = False,
    first: int = 0,
) -> Callable[[R1Model], object]:
    """Trains on the demonstrations from number `first` on."""
    config = SFTConfig(steps=steps, tokens=SFT_TOKENS, seq_len=128)
    shown = demonstrations(tokenizer, 100 + run.seed, all_facts)
    return lambda m: sft(run, name, m, config, lambda i: shown(i + first))


def new_run(seed: int) -> Run:
    """A run that keeps its log in a folder of its own."""
    folder = Path(tempfile.mkdtemp())
    log = MetricsLog(folder, tensorboard=False)
    return Run(folder, seed, log, checkpoint_seconds=1e9, progress=False)


def main(seed: int, out: Path) -> None:
    """Train and measure everything of one seed."""
    torch.set_num_threads(1)
    tokenizer, run = R1Tokenizer.load(BASE), new_run(seed)
    test = Bench(tokenizer, "test", 192)
    validation = Bench(tokenizer, "validation", 96)
    result = Record(out / f"seed{seed}.json", seed)
    optim = OptimConfig(name="adamw", lr=5e-4, weight_decay=0.0)

    def trained(
        name: str, start: R1Model, train: Callable[[R1Model], object], log: str = ""
    ) -> R1Model:
        model, began = copy.deepcopy(start), time.perf_counter()
        train(model)
        took = {"seconds": round(time.perf_counter() - began, 1)}
        result[name] = test.accuracy(model) | took
        if log:
            result[f"log of {log}"] = [
                {k: round(r[k], 4) for k in KEPT if k in r}
                for r in run.log.rewind(log, RL["steps"])
            ]
        print(name, json.dumps(result.rows[name]), flush=True)
        return model

    base = from_pretrained(BASE).float()
    taught = functools.partial(supervised, run, tokenizer)
    start = trained("start", base, taught("start", SFT_STEPS))
    result["weights of start"] = fingerprint(start)
    problem_at = stream(SHARES, 200 + seed).problem_at
    how = GRPOConfig(**RL, minibatches=2, optim=optim)
    trained("grpo", start, lambda m: grpo(run, m, tokenizer, how, problem_at), "grpo")
    result["tokens"] = run.log.rewind("grpo", RL["steps"])[-1]["tokens"]
    for name, temperature in (("expert", 1.0), ("expert, T=1.5", 1.5)):
        own = ExpertConfig(**RL | {"temperature": temperature}, optim=optim)
        stage = f"expert{temperature}"
        trained(
            name,
            start,
            lambda m, own=own, stage=stage: expert_iteration(
                run, m, tokenizer, own, problem_at, stage
            ),
            stage,
        )
    more = round(result.rows["tokens"] / SFT_TOKENS)
    trained("continued", start, taught("more", more, first=SFT_STEPS * SFT_TOKENS))
    trained("all facts shown", base, taught("all", SFT_STEPS, all_facts=True))
    result["made to think"] = test.accuracy(start, think=True)
    sweep = {t: validation.accuracy(start, t) for t in (0.0, 0.4, 0.7, 1.0)}
    best = max(sweep, key=lambda t: fmean(v["right"] for v in sweep[t].values()))
    result["best temperature"] = test.accuracy(start, best) | {"temperature": best}
    result["16 samples of start"] = test.accuracy(start, 1.0, 16)
    result["finished"] = True


def rounding(seed: int, draw: int, threads: int) -> None:
    """Adds a start of the seed, trained anew, to rounding.json."""
    torch.set_num_threads(threads)
    tokenizer = R1Tokenizer.load(BASE)
    model = from_pretrained(BASE).float()
    dice = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for weight in model.parameters() if draw else ():
            weight *= 1 + LAST_BITS * torch.randn(weight.shape, generator=dice)
    supervised(new_run(seed), tokenizer, "start", SFT_STEPS)(model)
    found = Bench(tokenizer, "test", 192).accuracy(model)
    row: dict[str, Any] = {
        "draw": draw,
        "threads": threads,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "weights": fingerprint(model),
        **{kind: numbers["right"] for kind, numbers in found.items()},
    }
    file = OUT / "rounding.json"
    rows = json.loads(file.read_text())["starts"] if file.exists() else []
    rows = [r for r in rows if r["weights"] != row["weights"]] + [row]
    file.write_text(json.dumps({"seed": seed, "starts": rows}, indent=1) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "rounding":
        rounding(*map(int, sys.argv[2:]))
    else:
        main(int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else OUT)
