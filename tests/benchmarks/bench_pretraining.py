"""The ablations of chapter 07: optimizers, MTP, document mask, model size.

    python tests/benchmarks/bench_pretraining.py optimizers --seed 0
    python tests/benchmarks/bench_pretraining.py scaling --seed 0 --only 32,48,64

Appends one row a run to results/pretraining/EXPERIMENT.jsonl: settings, losses,
bits per byte on validation and test documents. A few minutes each on one core.
Choose on validation; the test half is there to be read once, for what was chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from r1lite.config import R1Config
from r1lite.data import mixture
from r1lite.data.config import DataConfig
from r1lite.data.packing import PackedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.moe import balance
from r1lite.mtp import mtp_loss
from r1lite.planner.count import active_parameters, training_flops
from r1lite.tasks.documents import documents
from r1lite.training import optim
from r1lite.training.optim import OptimConfig
from r1lite.training.pretrain import bits_per_byte

REPO = Path(__file__).parents[2]
OUT = REPO / "results" / "pretraining"
SEQ, BATCH = 128, 16
ALPHA, GAMMA = 1e-4, 1e-3


@dataclass(frozen=True)
class Case:
    """One run: what differs from the others."""

    name: str
    width: int = 64
    steps: int = 300
    mtp: float = 0.0
    mask: bool = False
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="muon"))
    article: bool = False


def adamw(lr: float, **more: Any) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, **more)


def muon(lr: float) -> OptimConfig:
    return OptimConfig(name="muon", muon_lr=lr)


LIKE_ARTICLE = {"beta2": 0.98, "weight_decay": 0.01}
CASES = {
    "optimizers": [
        Case("article", optim=adamw(1e-4, **LIKE_ARTICLE), article=True),
        *(Case(f"adamw {lr}", optim=adamw(lr)) for lr in (1e-3, 3e-3, 6e-3, 12e-3)),
        *(Case(f"muon {lr}", optim=muon(lr)) for lr in (0.01, 0.02, 0.04)),
        Case("article betas and decay 0.003", optim=adamw(3e-3, **LIKE_ARTICLE)),
    ],
    "mtp": [Case("off", steps=120), Case("on; 0.3", mtp=0.3, steps=120)],
    "mask": [Case("no mask", steps=120), Case("document mask", mask=True, steps=120)],
    "scaling": [Case(str(w), width=w, steps=120) for w in (32, 48, 64, 80, 96)],
}


def model_config(case: Case, vocab: int) -> R1Config:
    """Depth grows with width; four experts, two of them for each token."""
    w = case.width
    return R1Config.preset("nano").with_(
        vocab_size=vocab,
        hidden_size=w,
        num_hidden_layers=2 + (w >= 64) + (w >= 96),
        num_attention_heads=w // 16,
        n_routed_experts=4,
        moe_intermediate_size=w // 2,
        intermediate_size=2 * w,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        v_head_dim=16,
        num_nextn_predict_layers=int(case.mtp > 0),
    )


def article_scale(step: int) -> float:
    """No warm-up, a cosine over 200,000 steps."""
    return 0.5 * (1 + math.cos(math.pi * step / 200_000))


def train(case: Case, model: R1Model, rows: PackedRows) -> list[float]:
    """Losses of every step."""
    optimizers = optim.build(model, case.optim)
    if case.article:  # decay on everything
        for group in optimizers[0].param_groups:
            group["weight_decay"] = case.optim.weight_decay
    losses = []
    for step in range(case.steps):
        scale = optim.lr_scale(case.optim, step, case.steps)
        optim.set_lr(optimizers, article_scale(step) if case.article else scale)
        batch = rows.batch(step, BATCH)
        ids, targets = batch.ids[:, :-1], batch.ids[:, 1:]
        masked = batch.document_ids[:, :-1] if case.mask else None
        out = model(ids, document_ids=masked)
        loss = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
        total = loss + balance.balance_loss(model, ALPHA, 0.0, 0.0)
        if case.mtp:
            ahead = mtp_loss(model, ids, out.hidden, document_ids=masked)
            total = total + case.mtp * ahead
        total.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), case.optim.clip))
        optim.step(optimizers, norm)
        balance.update_bias_(model, GAMMA)
        losses.append(loss.item())
    return losses


def measure(model: R1Model, data: mixture.Mixture) -> dict[str, dict[str, float]]:
    """Bits per byte of each domain, on the halves of its held-out documents."""
    found: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for domain, held in data.heldout.items():
        for i, part in enumerate(("validation", "test")):
            ids = held.ids[i::2]
            size = sum(len(TOKENIZER.decode(x[1:]).encode()) for x in ids)
            found[part][domain] = round(bits_per_byte(model, ids, size, SEQ), 4)
    return found


def run(case: Case, seed: int, data: mixture.Mixture) -> dict[str, Any]:
    """One row of the results."""
    rows = PackedRows(data.documents, TOKENIZER, SEQ, seed)
    torch.manual_seed(seed)
    model = R1Model(model_config(case, TOKENIZER.vocab_size)).train()
    began = time.process_time()
    losses = train(case, model, rows)
    seconds = time.process_time() - began
    found = measure(model.eval(), data)
    config = model.config
    tokens = case.steps * BATCH * SEQ
    return {
        "name": case.name,
        "seed": seed,
        "width": case.width,
        "steps": case.steps,
        "tokens": tokens,
        "optim": case.optim.model_dump(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "active": active_parameters(config) - config.vocab_size * config.hidden_size,
        "flops": training_flops(config, SEQ) * tokens,
        "cpu_seconds": round(seconds, 1),
        "loss": [round(x, 4) for x in losses[:: case.steps // 60]],
        "last_loss": round(sum(losses[-20:]) / 20, 4),
        **found,
    }


def machine() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "-C", str(REPO), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    kind = {"cpu": platform.processor() or platform.machine(), "commit": commit}
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        kind["cpu"] = names[0].partition(":")[2].strip() if names else kind["cpu"]
    return {**kind, "torch": torch.__version__, "threads": "1"}


def main(experiment: str, seed: int, wanted: Callable[[str], bool]) -> None:
    """Run the cases of an experiment one after the other."""
    torch.set_num_threads(1)
    data = mixture.build(
        DataConfig(),
        TOKENIZER,
        700_000,
        0,
        {"mathematics": documents(0, size=400_000)},
    )
    OUT.mkdir(parents=True, exist_ok=True)
    for case in CASES[experiment]:
        if wanted(case.name):
            row = run(case, seed, data)
            with (OUT / f"{experiment}.jsonl").open("a") as file:
                file.write(json.dumps({**row, "machine": machine()}) + "\n")
            print(case.name, seed, row["last_loss"], row["validation"], flush=True)


TOKENIZER = R1Tokenizer.load(REPO / "chapters" / "fixtures" / "nano" / "base")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of cases, comma between")
    given = parser.parse_args()
    names = {x.strip() for x in given.only.split(",") if x}
    main(given.experiment, given.seed, lambda name: not names or name in names)
