"""The sampler's speed: R1-lite against transformers on the same weights, one run.

    python tests/benchmarks/bench_generation.py --machine "AMD EPYC, 2 cores"

Both continue 64 prompts of 17 to 23 tokens by 48 tokens at temperature 1, with
a cache, in turn, so that a drifting machine slows both. R1-lite also runs
without its cache, to show what the cache is worth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import transformers

from r1lite.config import R1Config
from r1lite.generation import Sampling, left_pad, sample
from r1lite.hub import save_pretrained
from r1lite.model import R1Model

BATCH, NEW, TURNS = 64, 48, 5


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.inference_mode()
def uncached(model: R1Model, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Greedy decoding that computes the whole sequence for every token."""
    for _ in range(NEW):
        token = model(ids, attention_mask=mask).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def main(machine: str) -> None:
    """Measure in turn, print and store medians and ratios."""
    torch.manual_seed(0)
    model = R1Model(R1Config.preset("nano").with_(num_nextn_predict_layers=0)).eval()
    prompts = [[3 + (i * j) % 900 for j in range(17 + i % 7)] for i in range(BATCH)]
    ids, mask = left_pad(prompts, 2)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder) / "m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "m", dtype=torch.float32
        ).eval()
    how = transformers.GenerationConfig(
        max_new_tokens=NEW, do_sample=True, top_k=0, pad_token_id=2, eos_token_id=None
    )
    rivals: dict[str, Callable[[], object]] = {
        "r1lite": lambda: sample(model, prompts, Sampling(NEW)),
        "transformers": lambda: theirs.generate(
            ids, attention_mask=mask.long(), generation_config=how
        ),
        "r1lite without cache": lambda: uncached(model, ids, mask),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(TURNS + 1):
        for name, work in rivals.items():
            spent = seconds(work)
            if turn:  # the first turn warms up
                times[name].append(spent)
    speed = {n: round(BATCH * NEW / median(t)) for n, t in times.items()}
    result = {
        "machine": machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "work": f"{BATCH} prompts of 17-23 tokens, {NEW} new tokens, nano, float32",
        "tokens_per_s": speed,
        "times_transformers": round(speed["r1lite"] / speed["transformers"], 2),
        "times_without_cache": round(
            speed["r1lite"] / speed["r1lite without cache"], 2
        ),
    }
    target = Path(__file__).parent / "results" / "generation.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what it runs on, in words")
    main(parser.parse_args().machine)
