"""Every scheme and rounding on the nano model: size, quality, speed.

    python tests/benchmarks/quant_table.py [--problems 100] [--repeats 9]

Accuracy is of chapters/fixtures/nano/grpo on test problems, greedy. Bits per byte are
of .../base on documents that were held out: after RL the model no longer predicts
plain text (10 bits per byte, where a guess is 8). Calibration sees training documents
and, for grpo, its own answers to training problems. All models are in memory at
once and take turns, so that a busy machine slows all of them; medians are kept.
One thread. torchao's quantisers stand beside ours where it has one; they walk
nn.Linear, so that the routed experts stay in float.

Writes results/quantization/table.json (key "nano") and table.md.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from quant_results import add, torchao_, torchao_bytes
from torch import Tensor

from r1lite import recipe as recipes
from r1lite.data.domains import load_domains
from r1lite.data.mixture import HeldOut, encode_held
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import answer, by_level, pooled_accuracy
from r1lite.generation import Sampling, sample
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.quantization.apply import quantize_
from r1lite.quantization.calibrate import Calibration, calibrate
from r1lite.quantization.sensitivity import fit_budget, sensitivity
from r1lite.quantization.walk import model_bytes
from r1lite.report.machine import this_machine
from r1lite.tasks import Problem, problems
from r1lite.training.pretrain import bits_per_byte

ROOT = Path(__file__).parents[2]
NANO = ROOT / "chapters" / "fixtures" / "nano"
LEVELS = ("chain/3", "chain/4", "chain/5", "chain/6", "expression/3")
PLAIN = [
    *("int8", "int8-dynamic", "int8-g32", "int8-g32-asym", "fp8-block"),
    *("nf4-g32", "int4-g32", "int4-g32-asym"),
]
BETTER = [
    *(("int4-g32", "gptq"), ("int4-g32", "awq")),
    *(("int4-g32-asym", "hqq"), ("int4-g32-asym", "gptq"), ("nf4-g32", "awq")),
]
TORCHAO = ["int8", "int8-dynamic", "int4-g32"]


def texts(tokenizer: R1Tokenizer) -> tuple[list[HeldOut], list[Tensor]]:
    """Held-out documents by domain, and rows of training documents."""
    data = recipes.load(str(NANO / "recipe.toml")).data
    data = data.model_copy(update={"mixture": {**data.mixture, "mathematics": 0.0}})
    held: list[HeldOut] = []
    ids: list[int] = []
    for domain in load_domains(data, {}).values():
        held.append(encode_held(domain.held, tokenizer, 30_000))
        for corpus in domain.corpora[:3]:
            for document in corpus.draw(tokenizer, 1024, 0).ids:
                ids += [tokenizer.bos_id, *document]
    return held, as_rows(ids)


def as_rows(ids: list[int]) -> list[Tensor]:
    """Batches of 8 rows of 128 tokens."""
    whole = len(ids) // 128 * 128
    return list(torch.tensor(ids[:whole]).view(-1, 128).split(8))


def asked(split: str, count: int) -> list[Problem]:
    """The same problems for every model."""
    pairs = [name.split("/") for name in LEVELS]
    return [p for f, n in pairs for p in problems(f, int(n), split, count, 0)]


def seen(model: R1Model, tokenizer: R1Tokenizer, rows: list[Tensor]) -> list[Tensor]:
    """What calibration reads: documents, and answers of the model itself."""
    how = Sampling(64, 0.0, stop_ids=(tokenizer.eos_id,))
    made = answer(model, tokenizer, asked("train", 40), how)
    flat = [i for r in made for i in (*r.prompt, *r.response)]
    return [*rows, *as_rows(flat)]


def accuracy(model: R1Model, tokenizer: R1Tokenizer, count: int) -> float:
    """Share of test problems that are answered right."""
    how = Sampling(64, 0.0, stop_ids=(tokenizer.eos_id,))
    made = by_level(answer(model, tokenizer, asked("test", count), how))
    return pooled_accuracy(made)


def bits(model: R1Model, held: list[HeldOut]) -> float:
    """Bits per byte of all held-out text."""
    ids, total = [d for h in held for d in h.ids], sum(h.bytes for h in held)
    return bits_per_byte(model, ids, total, 128)


def opened(stage: str) -> R1Model:
    """A stage of the fixture in float32."""
    return from_pretrained(NANO / stage, torch.float32).requires_grad_(False)


def all_models(
    model: R1Model, found: Calibration, batches: list[Tensor]
) -> dict[str, tuple[R1Model, dict[str, Any]]]:
    """Every row of the table by name: a model and what is known of its size."""
    size = model_bytes(model)
    made: dict[str, tuple[R1Model, dict[str, Any]]] = {
        "float32": (model, {"bits": 32.0, "coverage": 0.0, "bytes": size}),
    }
    size16 = {"bits": 16.0, "coverage": 0.0, "bytes": 0}
    made["bfloat16"] = in_bfloat16(copy.deepcopy(model)), size16
    ways: list[tuple[str, Any, str]] = [(s, s, "rtn") for s in PLAIN]
    ways += [(f"{s} {m}", s, m) for s, m in BETTER]
    costs = sensitivity(model, batches[-4:], ("int4-g32", "int8-g32"))
    low, high = (
        sum(c.bytes for c in costs if c.scheme == s) for s in ("int4-g32", "int8-g32")
    )
    mixed = fit_budget(costs, low + (high - low) // 4)
    ways.append(("int4 and int8 mixed", mixed, "rtn"))
    for name, scheme, method in ways:
        one = copy.deepcopy(model)
        report = quantize_(one, scheme, method=method, calibration=found)
        known = {"bits": report.bits_per_weight, "coverage": report.coverage}
        made[name] = one, {**known, "bytes": report.bytes_after}
    one = copy.deepcopy(model)
    quantize_(one, "int8")
    made["int8 in bfloat16"] = in_bfloat16(one), dict(made["int8"][1])
    for scheme in TORCHAO:
        one = copy.deepcopy(model)
        covered = torchao_(one, scheme)
        total = sum(p.numel() for p in model.parameters())
        held = torchao_bytes(one)
        saved = {"bits": 8 * held[1] / covered, "coverage": covered / total}
        made[f"torchao {scheme}"] = one, {**saved, "bytes": held[0]}
    return made


def in_bfloat16(model: R1Model) -> R1Model:
    """The model in bfloat16; its logits become float32 for sampling."""
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.float())
    return model.to(torch.bfloat16)


def timed(models: dict[str, R1Model], repeats: int) -> dict[str, dict[str, float]]:
    """Median tokens/s, everyone in turn: prefill 4 x 128, decode of one answer."""
    ids = torch.randint(9, 1000, (4, 128), generator=torch.Generator().manual_seed(0))
    how = Sampling(32, 0.0)
    prompt = [ids[0, :16].tolist()]

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for name, model in models.items():
                read = seconds(lambda m=model: m(ids))  # type: ignore[misc]
                wrote = seconds(lambda m=model: sample(m, prompt, how))  # type: ignore[misc]
                spent[name].append((read, wrote))
    return {
        name: {
            "prefill": ids.numel() / median(r for r, _ in both[1:]),
            "decode": 32 / median(w for _, w in both[1:]),
        }
        for name, both in spent.items()
    }


def main(count: int, repeats: int) -> None:
    """Measure everything and write it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = {**this_machine().model_dump(), "threads": 1}
    tokenizer = R1Tokenizer.load(NANO / "grpo")
    model, base = opened("grpo"), opened("base")
    held, rows = texts(tokenizer)
    batches = seen(model, tokenizer, rows)
    found = calibrate(model, batches)
    made = all_models(model, found, batches)
    based = all_models(base, calibrate(base, rows), rows)
    rates = timed({name: m for name, (m, _) in made.items()}, repeats)
    table = []
    for name, (one, size) in made.items():
        if "torchao" not in name:  # with the float copies that decoding keeps
            size["bytes"] = model_bytes(one)
        right = accuracy(one, tokenizer, count)
        row = {"name": name, **size, **rates[name], "accuracy": right}
        table.append({**row, "bits_per_byte": bits(based[name][0], held)})
        print(table[-1], flush=True)
    routed = {n: c.tolist() for n, c in found.routed.items()}
    calibration = {"tokens": sum(b.numel() for b in batches), "routed": routed}
    kept = {"machine": machine, "problems": count * len(LEVELS), "repeats": repeats}
    kept |= {"heldout_bytes": sum(h.bytes for h in held)}
    calibration["lent"] = dict(found.lent)
    add("nano", {**kept, "calibration": calibration, "rows": table})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=100, help="of each level")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    main(arguments.problems, arguments.repeats)
