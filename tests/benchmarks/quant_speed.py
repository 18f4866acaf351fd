"""Speed where memory decides: one V2-Lite-sized layer of experts, and linear layers.

    python tests/benchmarks/quant_speed.py [--repeats 7]

Experts: 24 of 2048 x 1408 with random weights, more than the caches hold together.
Decoding sends one token to 6 of them, others each time, as a router does; prefill
sends 256 tokens. A product with one row reads each weight once and does little
else: if reading were all, time would follow bytes. Linear layers: 48 of 2048 x
2048, one after the other, beside torchao's. All take turns; medians are kept.

Writes results/quantization/table.json (keys "experts", "linear") and table.md.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from quant_results import add, torchao_, torchao_bytes
from torch import Tensor, nn

from r1lite.config import R1Config
from r1lite.moe.experts import Experts, looped
from r1lite.quantization.apply import quantize_
from r1lite.quantization.walk import model_bytes
from r1lite.report.machine import this_machine

HIDDEN, INNER, EXPERTS, TOP = 2048, 1408, 24, 6
SCHEMES = ("int8", "int8-dynamic", "fp8-block", "int4-g32", "int4-g32-asym", "nf4-g32")
Run = Callable[[], object]


class OneLayer(nn.Module):
    """Experts, and rows for them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER}
        config = R1Config.from_dict({**sizes, "n_routed_experts": EXPERTS})
        self.experts = Experts(config)

    def decode(self, dtype: torch.dtype) -> Run:
        """One token each time, to the next six experts."""
        rows, turn = torch.randn(TOP, HIDDEN).to(dtype), iter(range(10**6))

        def run() -> Tensor:
            first = next(turn) * TOP
            counts = torch.zeros(EXPERTS, dtype=torch.long)
            counts[[(first + i) % EXPERTS for i in range(TOP)]] = 1
            return self._through(rows, counts)

        return run

    def prefill(self, dtype: torch.dtype) -> Run:
        """256 tokens to six experts each, evenly."""
        counts = torch.full((EXPERTS,), 256 * TOP // EXPERTS)
        rows = torch.randn(int(counts.sum()), HIDDEN).to(dtype)
        return lambda: self._through(rows, counts)

    def _through(self, rows: Tensor, counts: Tensor) -> Tensor:
        if isinstance(self.experts, Experts):  # the faster one here, for one row each
            both = self.experts.gate_up_proj, self.experts.down_proj
            return looped(rows, *both, counts)
        return self.experts(rows, counts)


class ManyLinear(nn.Module):
    """Linear layers that all see the same rows."""

    def __init__(self) -> None:
        super().__init__()
        made = [nn.Linear(2048, 2048, bias=False) for _ in range(48)]
        self.layers = nn.ModuleList(made)

    def decode(self, dtype: torch.dtype) -> Run:
        """One row."""
        return self._with(torch.randn(1, 2048).to(dtype))

    def prefill(self, dtype: torch.dtype) -> Run:
        """256 rows."""
        return self._with(torch.randn(256, 2048).to(dtype))

    def _with(self, x: Tensor) -> Run:
        return lambda: [layer(x) for layer in self.layers]


def variants(model: nn.Module, schemes: tuple[str, ...]) -> dict[str, nn.Module]:
    """The float model in two precisions, then quantised."""
    made = {"float32": model, "bfloat16": copy.deepcopy(model).to(torch.bfloat16)}
    for scheme in schemes:
        one = copy.deepcopy(model)
        quantize_(one, scheme)
        made[scheme] = one
    for scheme in ("int8", "int4-g32", "int4-g32-asym"):
        if scheme in schemes:
            one = copy.deepcopy(model)
            quantize_(one, scheme)
            made[f"{scheme} in bfloat16"] = one.to(torch.bfloat16)
    return made


def measure(models: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Median milliseconds of both, everyone in turn.

    `mb` is what is held after that, `read_mb` without what a step does not read: where
    codes are held a second time in a kernel's order, it reads those alone.
    """
    stored = {name: held(name, model) for name, model in models.items()}
    runs: dict[str, tuple[Run, Run]] = {}
    for name, model in models.items():
        dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        runs[name] = model.decode(dtype), model.prefill(dtype)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for name, (decode, prefill) in runs.items():
                decode()
                times = []
                for run, n in ((decode, 4), (prefill, 1)):
                    start = time.perf_counter()
                    for _ in range(n):
                        run()
                    times.append(1000 * (time.perf_counter() - start) / n)
                spent[name].append((times[0], times[1]))
    rows = []
    for name, model in models.items():
        size = held(name, model)
        row = {"name": name, "mb": size / 1e6}
        row["read_mb"] = (size - stored[name] or size) / 1e6
        row["decode_ms"] = median(t for t, _ in spent[name][1:])
        row["prefill_ms"] = median(t for _, t in spent[name][1:])
        rows.append(row)
        print(row, flush=True)
    return rows


def held(name: str, model: nn.Module) -> int:
    """Bytes in memory, with what decoding keeps for its kernel."""
    return torchao_bytes(model)[0] if "torchao" in name else model_bytes(model)


def main(repeats: int) -> None:
    """Both parts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    common = {
        "machine": {**this_machine().model_dump(), "threads": 1},
        "repeats": repeats,
    }
    rows = measure(variants(OneLayer(), SCHEMES), repeats)
    what = f"{EXPERTS} of {HIDDEN} x {INNER}"
    note = (
        f"Decode: one token through {TOP} experts, others each time. Prefill: 256 "
        "tokens. `bytes say` is how much faster it would be if reading were all. MB "
        "is what is held after that: int4 in bfloat16 keeps its codes a second time, "
        "in the order of PyTorch's kernel, and reads only those."
    )
    add("experts", {**common, "what": what, "note": note, "rows": rows})
    linear = ManyLinear()
    models = variants(linear, ("int8", "int8-dynamic", "int4-g32"))
    for scheme in ("int8", "int8-dynamic", "int4-g32"):
        models[f"torchao {scheme}"] = copy.deepcopy(linear)
        torchao_(models[f"torchao {scheme}"], scheme)
    half = copy.deepcopy(models["bfloat16"])
    torchao_(half, "int8")
    models["torchao int8 in bfloat16"] = half
    note = "Decode: one row through all of them. Prefill: 256 rows."
    rows = measure(models, repeats)
    add("linear", {**common, "what": "48 of 2048 x 2048", "note": note, "rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    main(parser.parse_args().repeats)
