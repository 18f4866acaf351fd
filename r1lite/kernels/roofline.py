"""The least time of each kernel: its bytes through the memory, its FLOPs at the peak.

    python -m r1lite.kernels.roofline --write results/kernels/roofline.md

    time >= max(bytes / bandwidth, FLOPs / peak)     (doi 10.1145/1498765.1498785)

Bytes are those of all inputs and outputs, each moved once; FLOPs are those of the
operation. Where their quotient lies below the chip's, memory is the limit, and only
moving less makes a kernel faster. Nothing here was measured: no kernel can be
faster, and how much slower it is `r1lite bench kernels` says.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.kernels.fp8_gemm import DIRECT
from r1lite.kernels.work import Workload
from r1lite.kernels.workloads import workloads
from r1lite.planner.hardware import hardware

TOKENS = 4096


@dataclass(frozen=True)
class Peak:
    """A chip's rates per second: FLOPs of its units without sparsity, and bytes."""

    name: str
    vector: float
    matrix: float
    fp8: float
    bandwidth: float


def _planned(name: str, vector: float) -> Peak:
    chip = hardware(name.lower())
    return Peak(name, vector, chip.flops, chip.fp8_flops, chip.bandwidth)


# Makers' data sheets: A100 80GB SXM, H100 SXM (as the planner has them, with their
# float32 rate), HGX B200, Instinct MI300X. What multiplies no E4M3 does it in 16 bits.
PEAKS = {
    "sm_80": _planned("A100", 19.5e12),
    "sm_90": _planned("H100", 67e12),
    "sm_100": Peak("B200", 75e12, 2250e12, 4500e12, 7.7e12),
    "gfx942": Peak("MI300X", 163.4e12, 1307.4e12, 2614.9e12, 5.3e12),
}


@dataclass(frozen=True)
class Bound:
    """The least time of a kernel on a chip, and what sets it: memory or compute."""

    seconds: float
    limit: str


def traffic(work: Workload) -> int:
    """Bytes of what goes in and what comes out, each tensor once."""
    tensors = _tensors((work.args, work.kernel()))
    return sum(t.numel() * t.element_size() for t in tensors)


def _tensors(things: Any) -> list[Tensor]:
    if isinstance(things, Tensor):
        return [things]
    return [t for x in things for t in _tensors(x)] if isinstance(things, tuple) else []


def bound(flops: float, unit: str, moved: int, chip: str) -> Bound:
    """The roofline of `flops` on a unit ("vector", "matrix", "fp8"), `moved` bytes."""
    peak = PEAKS[chip]
    if unit == "fp8" and chip not in DIRECT:
        unit = "matrix"
    compute, memory = flops / getattr(peak, unit), moved / peak.bandwidth
    return Bound(max(compute, memory), "compute" if compute > memory else "memory")


def roofline_table() -> str:
    """Every kernel at V3's sizes in bfloat16, as Markdown."""
    chips = " | ".join(f"{PEAKS[chip].name}, µs" for chip in PEAKS)
    lines = [f"| kernel | GFLOP | MB | FLOP / B | {chips} |", "|---" * 8 + "|"]
    v3 = R1Config.preset("v3")
    for work in workloads(v3, TOKENS, "meta", torch.bfloat16):
        moved = traffic(work)
        cells = [work.name, f"{work.flops / 1e9:,.2f}", f"{moved / 1e6:,.2f}"]
        cells.append(f"{work.flops / moved:,.1f}")
        for chip in PEAKS:
            least = bound(work.flops, work.unit, moved, chip)
            cells.append(f"{least.seconds * 1e6:,.1f} {least.limit}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    where = parser.parse_args().write
    text = roofline_table()
    if where:
        where.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    _main()
