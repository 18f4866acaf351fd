"""Can RL learn chains one step longer than any that was shown? Longer than luck?

    python tests/benchmarks/chain7.py [OUT]

The GRPO model of chapters/fixtures is right on chain/6 and was never asked
chain/7. It is asked; then GRPO trains it on chain/7 alone, and it is asked again.
"right" counts the answer, which a guess finds once in ten; "right reasoning" every
step. Writes results/r1/chain7.json. About two minutes on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import answer
from r1lite.generation import Sampling
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.tasks import problems, stream
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig

ROOT = Path(__file__).parents[2]
START = ROOT / "chapters" / "fixtures" / "nano" / "grpo"
LEVELS = (6, 7)
ASKED, NEW, STEPS, SEED = 256, 64, 60, 0
KEPT = ("accuracy", "length", "entropy", "frac_all_wrong", "frac_zero_std")


def measured(model: R1Model, tokenizer: R1Tokenizer) -> dict[str, Any]:
    """Each level greedy, and by any of 4 samples, on unseen problems."""
    stop, found = (tokenizer.eos_id,), {}
    for level in LEVELS:
        asked = problems("chain", level, "test", ASKED, 0)
        items = answer(model, tokenizer, asked, Sampling(NEW, 0.0, stop_ids=stop))
        how = Sampling(NEW, 1.0, stop_ids=stop, seed=5)
        four = [r.score.accuracy for r in answer(model, tokenizer, asked, how, 4)]
        found[f"chain/{level}"] = {
            "right": fmean(r.score.accuracy for r in items),
            "right reasoning": fmean(
                (r.parsed.reasoning or "").strip() == r.problem.reasoning for r in items
            ),
            "length": fmean(len(r.response) for r in items),
            "any of 4": fmean(max(four[i : i + 4]) for i in range(0, len(four), 4)),
        }
    return found


def main(out: Path) -> None:
    """Measure, train, measure."""
    torch.set_num_threads(1)
    tokenizer = R1Tokenizer.load(START)
    model = from_pretrained(START).float()
    folder = Path(tempfile.mkdtemp())
    log = MetricsLog(folder, tensorboard=False)
    run = Run(folder, SEED, log, checkpoint_seconds=1e9, progress=False)
    result: dict[str, Any] = {"seed": SEED, "problems": ASKED, "steps": STEPS}
    result["before"] = measured(model, tokenizer)
    optim = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)
    config = GRPOConfig(steps=STEPS, max_new_tokens=NEW, optim=optim)
    grpo(run, model, tokenizer, config, stream({"chain/7": 1.0}, SEED).problem_at)
    result["after"] = measured(model, tokenizer)
    rows = log.rewind("grpo", STEPS)
    result["log"] = [{k: round(r[k], 4) for k in KEPT} for r in rows]
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("before", "after")}, indent=1))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]) if given else ROOT / "results" / "r1" / "chain7.json")
