"""R1-Zero on nano: GRPO from a base that no conversation was ever shown.

    python tests/benchmarks/zero.py [SEED] [OUT]

Two bases. "nano" is that of chapters/fixtures, 5 % mathematics, as the recipe
pretrains it. "mathematics" is the same one, pretrained further on documents of that
domain alone, half of which write their steps: what V3-Base had seen plenty of. Both
are asked in the form of that text, question and newline; an answer ends with its
line `Answer: ...`. The reward is 1 for the right one. Measured on test problems,
greedy, before and after, beside controls without RL: an example with steps put before
the question, the best temperature, votes of 16. Then the "aha": length, share of
answers with steps, words of self-checking and repeated steps, over the whole run.
Writes results/r1/zero/NAME.json.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from r1lite.data.chat import Response
from r1lite.data.packing import PackedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import EvalConfig, problem_set
from r1lite.generation import Sampling, sample
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.tasks import Problem, stream
from r1lite.tasks.documents import documents
from r1lite.tasks.reward import Score
from r1lite.training.loop import Run, Update, derive_seed, run_stage
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig
from r1lite.training.policy_loss import group_advantages, group_outcomes
from r1lite.training.policy_update import PolicyUpdate, UpdateConfig
from r1lite.training.pretrain import PretrainConfig, pretrain
from r1lite.training.rollout import Rollout

ROOT = Path(__file__).parents[2]
BASE = ROOT / "chapters" / "fixtures" / "nano" / "base"
LEVELS = ("chain/3", "chain/4", "chain/5", "chain/6", "expression/3")
SHARES = dict.fromkeys(LEVELS, 1.0)
NEW, QUESTIONS, GROUP, STEPS = 72, 32, 8, 120
CHECKS = ("wait", "check", "again", "hmm", "no,", "let me", "actually", "mistake")


@dataclass
class Tried:
    """One answer in the form of the text: its tokens up to the end of its line."""

    problem: Problem
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str

    @property
    def answer(self) -> str | None:
        """What stands behind the first `Answer: `."""
        found = self.text.partition("Answer: ")[2].split("\n")[0].strip()
        return found or None

    @property
    def right(self) -> bool:
        """Is it the verifier's?"""
        return self.answer == self.problem.answer

    @property
    def steps(self) -> list[str]:
        """The lines before the answer."""
        return [x for x in self.text.partition("Answer:")[0].split("\n") if x.strip()]


def ask(
    model: R1Model,
    tokenizer: R1Tokenizer,
    asked: list[Problem],
    how: Sampling,
    n: int = 1,
    before: str = "",
) -> list[Tried]:
    """`n` answers to each problem, cut behind the line that answers."""
    encoded = tokenizer.encode_batch([f"{before}{p.question}\n" for p in asked])
    prompts = [[tokenizer.bos_id, *ids] for ids in encoded]
    made = sample(model.eval(), prompts, how, n)
    found = []
    for i, (tokens, logprobs) in enumerate(
        zip(made.tokens, made.logprobs, strict=True)
    ):
        text, used = "", 0
        while used < len(tokens):  # whole answer line, newline included
            used += 1
            text = tokenizer.decode(tokens[:used])
            if "\n" in text.partition("Answer:")[2]:
                break
        parts = tokens[:used], logprobs[:used]
        found.append(Tried(asked[i // n], prompts[i // n], *parts, text))
    return found


def habits(items: list[Tried]) -> dict[str, float]:
    """Accuracy, length and what could be called an aha, over answers."""
    checked = [any(w in t.text.lower() for w in CHECKS) for t in items]
    return {
        "right": fmean(t.right for t in items),
        "answers": fmean(t.answer is not None for t in items),
        "length": fmean(len(t.tokens) for t in items),
        "with steps": fmean(bool(t.steps) for t in items),
        "right with steps": _mean([t.right for t in items if t.steps]),
        "right without": _mean([t.right for t in items if not t.steps]),
        "self-checks": fmean(checked),
        "repeats a step": fmean(len(set(t.steps)) < len(t.steps) for t in items),
    }


def _mean(values: list[bool]) -> float:
    return fmean(values) if values else 0.0


def more_mathematics(run: Run, base: R1Model, tokenizer: R1Tokenizer) -> R1Model:
    """The base, pretrained on mathematics alone for nano's number of tokens."""
    model = copy.deepcopy(base)
    config = PretrainConfig(steps=300, batch_size=32, seq_len=128)
    texts = documents(derive_seed(run.seed, "zero"), shares=SHARES, size=2_000_000)
    rows = PackedRows(tokenizer.encode_batch(texts), tokenizer, 128, run.seed)
    pretrain(run, model, config, rows, "mathematics")
    return model.eval()


def zero(run: Run, model: R1Model, tokenizer: R1Tokenizer, name: str) -> R1Model:
    """GRPO in place, one reward: the answer is right."""
    at = stream(SHARES, derive_seed(run.seed, "zero problems")).problem_at
    config = UpdateConfig(minibatches=1)
    trainer = PolicyUpdate(run, model, tokenizer.pad_id, config)

    def step(i: int, update: Update) -> dict[str, float]:
        asked = [at(i * QUESTIONS + j) for j in range(QUESTIONS)]
        seed = derive_seed(run.seed, name, i)
        how = Sampling(NEW, 1.0, stop_ids=(tokenizer.eos_id,), seed=seed)
        with torch.no_grad():
            items = ask(model, tokenizer, asked, how, GROUP)
        model.train()
        rewards = torch.tensor([float(t.right) for t in items]).view(-1, GROUP)
        advantages = group_advantages(rewards).flatten()
        spread = rewards.std(-1, correction=0) > 0
        keep = spread.repeat_interleave(GROUP).nonzero()[:, 0].tolist()
        rolled = [_rollout(t) for t in items]
        tokens = sum(len(t.prompt) + len(t.tokens) for t in items)
        return {
            **habits(items),
            **group_outcomes(rewards > 0),
            "tokens": tokens,
            **trainer.train(rolled, advantages, keep, update),
        }

    optim = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)
    run_stage(run, name, model, optim, STEPS, step)
    return model.eval()


def _rollout(t: Tried) -> Rollout:
    """As the update wants it; it reads tokens and log-probabilities only."""
    parsed = Response(None, t.answer, False, bool(t.steps))
    score = Score(float(t.right), 0.0, float(t.right))
    return Rollout(t.problem, t.prompt, t.tokens, t.logprobs, parsed, score)


class Bench:
    """The test and validation problems, and every way of asking them."""

    def __init__(self, tokenizer: R1Tokenizer) -> None:
        config = EvalConfig(levels=LEVELS)
        self.tokenizer = tokenizer
        self.test = problem_set(config, "test", 200)
        self.validation = problem_set(config, "validation", 60)

    def greedy(self, model: R1Model, before: str = "") -> dict[str, float]:
        """Habits on all test problems."""
        how = Sampling(NEW, 0.0, stop_ids=(self.tokenizer.eos_id,))
        return habits(ask(model, self.tokenizer, self.test, how, before=before))

    def controls(self, model: R1Model) -> dict[str, Any]:
        """What the base does without RL, asked better."""
        shown = stream(SHARES, 77).problem_at
        example = shown(0)
        before = "\n".join(
            [example.question, *example.steps, f"Answer: {example.answer}", "", ""]
        )
        tried = {
            t: fmean(
                x.right
                for x in ask(model, self.tokenizer, self.validation, self._at(t))
            )
            for t in (0.4, 0.7, 1.0)
        }
        best = max(tried, key=lambda t: tried[t])
        votes = ask(model, self.tokenizer, self.validation, self._at(1.0), 16)
        groups = [votes[i : i + 16] for i in range(0, len(votes), 16)]
        return {
            "an example with steps before it": self.greedy(model, before),
            "best temperature": habits(
                ask(model, self.tokenizer, self.test, self._at(best))
            )
            | {"temperature": best},
            "16 samples": {
                "right": fmean(t.right for t in votes),
                "majority": fmean(map(_voted, groups)),
                "any": fmean(any(t.right for t in g) for g in groups),
            },
        }

    def _at(self, temperature: float) -> Sampling:
        stop = (self.tokenizer.eos_id,)
        return Sampling(NEW, temperature, stop_ids=stop, seed=11)


def _voted(group: list[Tried]) -> bool:
    """Is the commonest answer right? Of equally common ones the first counts."""
    given = Counter(t.answer for t in group if t.answer is not None)
    return bool(given) and given.most_common(1)[0][0] == group[0].problem.answer


def main(seed: int, out: Path) -> None:
    """Both bases: measure, train, measure."""
    torch.set_num_threads(1)
    tokenizer = R1Tokenizer.load(BASE)
    folder = Path(tempfile.mkdtemp())
    log = MetricsLog(folder, tensorboard=False)
    run = Run(folder, seed, log, checkpoint_seconds=1e9, progress=False)
    bench = Bench(tokenizer)
    nano = from_pretrained(BASE).float().eval()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("nano", "mathematics"):
        base = nano if name == "nano" else more_mathematics(run, nano, tokenizer)
        result: dict[str, Any] = {"seed": seed, "before": bench.greedy(base)}
        result["controls"] = bench.controls(base)
        print(name, json.dumps(result), flush=True)
        began = time.perf_counter()
        stage = f"zero {name}"
        after = zero(run, copy.deepcopy(base), tokenizer, stage)
        result |= {"after": bench.greedy(after), "steps": STEPS}
        result["minutes"] = (time.perf_counter() - began) / 60
        keep = (*result["after"], "frac_all_wrong", "frac_all_right", "grad_norm")
        result["log"] = [
            {k: round(r[k], 4) for k in keep} for r in log.rewind(stage, STEPS)
        ]
        how = Sampling(NEW, 0.0, stop_ids=(tokenizer.eos_id,))
        few = ask(after, tokenizer, bench.test[::200], how)
        result["samples"] = [
            {"question": t.problem.question, "text": t.text} for t in few
        ]
        (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result["after"]), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    target = Path(given[1]) if given[1:] else ROOT / "results" / "r1" / "zero"
    main(int(given[0]) if given else 0, target)
