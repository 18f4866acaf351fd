"""How fast GRPO samples and trains on nano, and what its three savings bring.

    python tests/benchmarks/bench_rl.py --machine "AMD EPYC, 2 cores"

Rivals take turns in one process; processor seconds, one thread, median. Writes
results/rl_speed.json beside this file: tokens/s, and ratios, which travel better.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from r1lite import generation, tasks
from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling, sample
from r1lite.hub import from_pretrained
from r1lite.training.policy_loss import PolicyConfig, policy_loss
from r1lite.training.policy_update import by_length
from r1lite.training.rollout import Rollout, collate, rollouts
from r1lite.training.sft import token_logprobs

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "chapters" / "fixtures" / "nano" / "sft"
SHARES = {f"chain/{n}": 1.0 for n in (3, 4, 5, 6)} | {"expression/3": 1.0}
QUESTIONS, GROUP, NEW, ROWS, TURNS = 32, 8, 64, 32, 5


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(machine: str) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    tokenizer = R1Tokenizer.load(FIXTURE)
    model = from_pretrained(FIXTURE).float().eval()
    at = tasks.stream(SHARES, 0).problem_at
    asked = [at(i) for i in range(QUESTIONS)]
    how = Sampling(NEW, 1.0, stop_ids=(tokenizer.eos_id,), seed=1)
    prompts = [chat.prompt(tokenizer, p.question) for p in asked]
    items = rollouts(model, tokenizer, asked, how, GROUP)
    written = sum(len(r.response) for r in items)
    read = sum(len(r.prompt) + len(r.response) for r in items)

    def sampled(shared: bool = True, leave: bool = True) -> None:
        keep = generation.SHRINK
        generation.SHRINK = keep if leave else 0.0
        if shared:
            sample(model, prompts, how, GROUP)
        else:
            sample(model, [p for p in prompts for _ in range(GROUP)], how)
        generation.SHRINK = keep

    advantages = torch.randn(len(items))

    def trained(order: list[int], rows: int) -> None:
        model.train()
        for i in range(0, len(order), rows):
            chosen = order[i : i + rows]
            _backward(model, [items[k] for k in chosen], advantages[chosen], tokenizer)
        model.zero_grad()
        model.eval()

    every = list(range(len(items)))
    shuffled = random.Random(0).sample(every, len(every))
    rivals: dict[str, Callable[[], object]] = {
        "sampling": sampled,
        "sampling, a prefill for each answer": lambda: sampled(shared=False),
        "sampling, ended rows stay": lambda: sampled(leave=False),
        "training": lambda: trained(by_length(items, every, 1), ROWS),
        "training, answers in any order": lambda: trained(shuffled, ROWS),
        "training, one batch": lambda: trained(every, len(every)),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(TURNS + 1):
        for name, work in rivals.items():
            spent = seconds(work)
            if turn:  # the first turn warms up
                times[name].append(spent)
    mid = {name: median(t) for name, t in times.items()}
    result = {
        "machine": machine,
        "torch": torch.__version__,
        "unit": "tokens for a second of one processor, median of 5 turns",
        "work": f"{QUESTIONS} questions x {GROUP} answers of nano/sft, "
        f"{written} tokens written, {read} read, micro-batches of {ROWS}",
        "tokens_per_s": {
            name: round((written if "sampling" in name else read) / t)
            for name, t in mid.items()
        },
        "ratios": {
            "sampling is faster with one prefill a group": _ratio(
                mid["sampling, a prefill for each answer"], mid["sampling"]
            ),
            "sampling is faster when ended rows leave": _ratio(
                mid["sampling, ended rows stay"], mid["sampling"]
            ),
            "training is faster on answers sorted by length": _ratio(
                mid["training, answers in any order"], mid["training"]
            ),
        },
    }
    target = Path(__file__).parent / "results" / "rl_speed.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _ratio(slow: float, fast: float) -> float:
    return round(slow / fast, 2)


def _backward(
    model: torch.nn.Module,
    items: list[Rollout],
    advantages: torch.Tensor,
    tokenizer: R1Tokenizer,
) -> None:
    """Forward, loss and backward of one micro-batch."""
    batch = collate(items, tokenizer.pad_id)
    where = (batch.ids, batch.prompt_lengths, batch.lengths)
    logprobs, mask = token_logprobs(model, *where)  # type: ignore[arg-type]
    loss, _ = policy_loss(
        logprobs, batch.old_logprobs, advantages, mask, PolicyConfig()
    )
    torch.autograd.backward(loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what it runs on, in words")
    main(parser.parse_args().machine)
