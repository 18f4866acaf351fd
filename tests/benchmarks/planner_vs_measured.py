r"""What the planner says beside what happens here, and beside what V3 published.

    PYTHONPATH=tests python tests/benchmarks/planner_vs_measured.py \
        --machine "AMD EPYC, 2 cores"

Writes results/planner/table.md. Nothing in it is a time; on another machine only a
token whose picks are tied within rounding may be counted elsewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from parallel.launch import torchrun
from parallel.planner_workers import CONFIG, NODE, ROWS, SEQ

from r1lite.config import R1Config
from r1lite.memory.meter import MemoryMeter
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.planner.activations import layer_activations
from r1lite.planner.count import active_parameters, parameters
from r1lite.planner.hardware import GB, hardware
from r1lite.planner.layout import Layout
from r1lite.planner.memory import FLOAT32, Precision, cache_bytes, rank_memory
from r1lite.planner.schedule import SCHEDULES, bubble_share
from r1lite.planner.step import V3_ASSUMPTIONS, step_time
from r1lite.planner.traffic import expected_rows

TABLE = Path(__file__).parents[2] / "results" / "planner" / "table.md"
LAYOUTS = {2: ("ep2", "ep2-fsdp"), 4: ("ep4", "ep4-nodes2", "ep2", "ep2-fsdp")}
TRUNK = CONFIG.with_(num_nextn_predict_layers=0)
Cells = list[list[Any]]


def launch() -> dict[tuple[int, str], dict[str, Any]]:
    """What each layout's processes found, by (ranks, layout)."""
    found = {}
    for ranks, layouts in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "found.json")
            torchrun("planner_workers.py", ranks, out, *layouts)
            for layout, values in json.loads(out.read_text()).items():
                found[ranks, layout] = values
    return found


def traffic(found: dict[tuple[int, str], dict[str, Any]]) -> Cells:
    """Rows between nodes and inside, all layers and ranks, one way."""
    n_moe = TRUNK.num_hidden_layers - TRUNK.first_k_dense_replace
    tokens = ROWS * (n_moe * SEQ + SEQ - 1)  # the MTP module has one token less
    cells: Cells = []
    for (ranks, layout), values in found.items():
        ep = int(layout.removeprefix("ep").split("-")[0])
        limit = ep // NODE if "nodes" in layout else None
        even = expected_rows(CONFIG, ep, NODE, limit)
        sent, per_row = values["sent"], 4 * CONFIG.hidden_size
        for i, name in enumerate(("across", "inside")):
            planned = sum(layer[i] for layer in values["planned"])
            rows = sent[f"rows_{name}"]
            if planned or rows:
                other = f"{sent['other_bytes']:,}" if name == "inside" else ""
                cells.append(
                    [f"{layout} on {ranks}", name, f"{tokens * even[i]:,.0f}"]
                    + [f"{planned:,}", f"{rows / 4:,g}", f"{4 * planned * per_row:,}"]
                    + [f"{rows * per_row:,}", other]
                )
    return cells


def memory(found: dict[tuple[int, str], dict[str, Any]]) -> Cells:
    """Bytes of rank 0; the test looks at every rank."""
    cells: Cells = []
    for (ranks, layout), values in found.items():
        if "nodes" in layout:  # holds what it would without nodes
            continue
        planned, here = planned_memory(ranks, layout), values["bytes"][0]
        for name, key in (
            ("weights", "weights"),
            ("gradients", "gradients"),
            ("optimizer", "moments"),
        ):
            cells.append(
                [f"{layout} on {ranks}", name, f"{planned[key]:,.0f}"]
                + [f"{here[key]:,}", f"{here[key] - planned[key]:,.0f}"]
            )
    return cells


def planned_memory(ranks: int, layout: str) -> dict[str, float]:
    """The planner's bytes of a rank in a layout of `planner_workers`."""
    ep = int(layout.removeprefix("ep").split("-")[0])
    cut = "fsdp" if "fsdp" in layout else "nothing"
    plan = Layout(gpus=ranks, ep=ep, rows=ROWS, seq=SEQ, cut=cut)
    m = rank_memory(CONFIG, plan, precision=FLOAT32)
    return {"weights": m.weights, "gradients": m.gradients, "moments": m.optimizer}


def activations(seq: int = 256) -> Cells:
    """Bytes alive after the blocks' forward pass, of all layers, one sequence."""
    cells: Cells = []
    for policy in ("none", "selective", "block"):
        torch.manual_seed(0)
        model = checkpoint_blocks_(R1Model(TRUNK).train(), policy)
        x = torch.randn(1, seq, TRUNK.hidden_size, requires_grad=True)
        turn = model.rope(torch.arange(seq)[None], x.dtype)
        with MemoryMeter() as meter:
            for block in model.layers:
                x = block(x, turn)
        layers = range(TRUNK.num_hidden_layers)
        per_token = sum(layer_activations(TRUNK, i, policy) for i in layers)
        planned = int(per_token * seq * FLOAT32.activation)
        cells.append([policy, f"{planned:,}", f"{meter.alive:,}"])
        cells[-1].append(f"{meter.alive - planned:,}")
    return cells


def published() -> Cells:
    """DeepSeek-V3's numbers (arXiv 2412.19437) and the planner's."""
    c, gpu = R1Config.preset("v3"), hardware("h800")
    layout = Layout(gpus=2048, pp=16, ep=64, rows=15360, seq=4096)
    found = parameters(c)
    total = sum(found.values()) - found["MTP"]
    across, inside = expected_rows(c, 64, 8, node_limit=4)
    whole = cache_bytes(c, latent=False)
    flat = expected_rows(c, 64, 8)
    worst = max(
        rank_memory(c, layout, s, Precision(activation=1), schedule="dualpipe").total
        for s in range(16)
    )

    def hours(efficiency: float) -> float:
        a = dataclasses.replace(V3_ASSUMPTIONS, efficiency=efficiency)
        steps = 14.8e12 / layout.tokens
        return step_time(c, layout, gpu, a).total * steps * 2048 / 3600

    cells: Cells = [
        ["parameters without MTP", "671 B", f"{total / 1e9:.2f} B"],
        ["active for a token", "37 B", f"{active_parameters(c) / 1e9:.2f} B"],
        ["cache of a token, bf16", "-", f"{cache_bytes(c):,} bytes"],
        ["  the same heads without MLA", "-", f"{whole:,} bytes"],
        ["other nodes a token is sent to", "at most 4", f"{across:.2f}"],
        ["  rows between nodes, one a pick", "-", f"{flat.across:.2f}"],
        ["rows handed on inside nodes", "-", f"{inside:.2f}"],
        ["fullest rank, DualPipe, FP8 kept", "80 GB", f"{worst / GB:.1f} GB"],
        ["H800 hours at 40 % of the peak", "2.664 M", f"{hours(0.4) / 1e6:.3f} M"],
        ["H800 hours at 23.2 %", "2.664 M", f"{hours(0.232) / 1e6:.3f} M"],
    ]
    for schedule in SCHEDULES:
        share = bubble_share(layout, schedule)
        cells.append([f"bubble over work, {schedule}", "-", f"{share:.1%}"])
    return cells


def markdown(heads: list[str], cells: Cells) -> str:
    """A table; all but the first column are numbers."""
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    lines = [heads, rule, *([str(v) for v in row] for row in cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def document(machine: str, found: dict[tuple[int, str], dict[str, Any]]) -> str:
    """The whole file."""
    traffic_heads = ["layout", "rows", "even picks", "from the picks", "counted"]
    traffic_heads += ["bytes planned", "bytes counted", "other bytes"]
    compared = ["planned", "measured", "difference"]
    return "\n\n".join(
        [
            "# The planner and what happened",
            f"Made by `tests/benchmarks/planner_vs_measured.py` on {machine}. Recipe "
            f"`nano`'s model, float32, gloo; {ROWS} x {SEQ} tokens a step, nodes of "
            f"{NODE} ranks.",
            "## All-to-all of one step\n\nRows sent to other ranks, one way, all MoE "
            "layers and ranks together: expected for even picks, counted by the "
            "planner from the picks that were made, counted where torch is called. "
            "Bytes: out and back, forward and backward. Other bytes: counts, expert "
            "numbers, weights; the planner leaves them out.",
            markdown(traffic_heads, traffic(found)),
            "## State of a rank, bytes\n\nNot counted by the planner: AdamW's step "
            "counts, 4 bytes a tensor, and the router's buffers, 96 bytes a layer.",
            markdown(["layout", "what", *compared], memory(found)),
            "## Activations of the blocks, bytes\n\nThe difference: the grouped "
            "product's int32 bounds, one per expert and layer.",
            markdown(["policy", *compared], activations()),
            "## DeepSeek-V3\n\n2048 H800, PP16, EP64, 15,360 sequences of 4,096 "
            "tokens, 14.8 T tokens. The paper's hours imply 23 % of a peak that is "
            "90 % FP8: the planner knows nothing of idle hardware, restarts and "
            "kernels below the peak.",
            markdown(["number", "published", "planner"], published()) + "\n",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    text = document(parser.parse_args().machine, launch())
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(text)
    print(text)
