"""Every kernel compiled for four GPUs on a machine that has none.

    python -m r1lite.kernels.build          # the table
    python -m r1lite.kernels.build --write results/kernels/compile.md

Triton compiles ahead of time to machine code; the assembler says how many registers
a thread takes and what it had to spill to memory. Each row also counts the matrix
instructions: without them a "fused" kernel multiplies number by number.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1lite.errors import R1Error
from r1lite.kernels import (
    attention_kernels,
    grouped,
    logprobs,
    norm,
    permute,
    rope,
    swiglu,
)
from r1lite.kernels.attention import BACK_KEYS, BACK_QUERIES, FORWARD, shape_of
from r1lite.kernels.choose import interpreted, triton

MATRIX = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")


@dataclass(frozen=True)
class Chip:
    """A compile target. Shared memory in bytes: of one block, of one multiprocessor."""

    name: str
    backend: str
    arch: int | str
    warp: int
    block_shared: int
    shared: int
    registers: int
    threads: int


CHIPS = (
    Chip("sm_80", "cuda", 80, 32, 166_912, 167_936, 65_536, 2048),
    Chip("sm_90", "cuda", 90, 32, 232_448, 233_472, 65_536, 2048),
    Chip("sm_100", "cuda", 100, 32, 232_448, 233_472, 65_536, 2048),
    Chip("gfx942", "hip", "gfx942", 64, 65_536, 65_536, 131_072, 2048),
)


@dataclass(frozen=True)
class Case:
    """A kernel at a size that matters: types of its arguments, and its constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


@dataclass(frozen=True)
class Built:
    """What the compiler says of one kernel on one chip."""

    case: str
    chip: str
    registers: int
    spilled: int
    shared: int
    matrix: str
    blocks: int


def cases() -> list[Case]:
    """All kernels in bfloat16 at the sizes of V3: MLA 192 / 128, hidden 7168."""
    bf16, fp32, i64 = "*bf16", "*fp32", "*i64"
    attention = dict.fromkeys(["q", "k", "v", "o", "do", "dq", "dk", "dv"], bf16)
    attention |= {"lse": fp32, "delta": fp32, "starts": "*i32", "scale": "fp32"}
    k, moe = attention_kernels, {"E": 256, "M": 64, "N": 64, "K": 32}
    x, logits = {"x": bf16, "y": bf16, "weight": bf16}, {"z": bf16, "targets": i64}
    both = {"gate": bf16, "up": bf16, "y": bf16, "dy": bf16, "dgate": bf16, "dup": bf16}
    row = {"SIZE": 8192}
    moved = x | {"order": i64, "place": i64, "done": bf16, "weights": fp32}
    moved |= {"dy": bf16, "ddone": bf16, "dweights": fp32}
    normed = x | {"rstd": fp32, "dy": bf16, "dx": bf16, "dw": fp32, "eps": "fp32"}
    turned = x | {"cos": fp32, "sin": fp32}
    steps = {"ALONG": 2, "APART": 1, "OUT": 32, "BACK": False, "SIZE": 32}
    return [
        Case("attention", k.forward, attention, *_tile(FORWARD)),
        Case("attention, dk dv", k.backward_keys, attention, *_tile(BACK_KEYS)),
        Case("attention, dq", k.backward_queries, attention, *_tile(BACK_QUERIES)),
        Case("grouped product", grouped._product, x | {"counts": i64}, moe),
        Case(
            "grouped product, dW",
            grouped._weight_gradient,
            x | {"dy": bf16, "dw": bf16, "counts": i64},
            {"E": 256, "M": 32, "N": 64, "K": 64},
        ),
        Case("permute", permute._gather, moved, row),
        Case("unpermute", permute._collect, moved, row | {"WEIGHED": True}),
        Case("unpermute, backward", permute._spread, moved, row),
        Case("rms_norm", norm._forward, normed, row, 8),
        Case("rms_norm, backward", norm._backward, normed, row | {"ROWS": 16}, 8),
        Case("swiglu", swiglu._forward, both, {"BLOCK": 1024}),
        Case("swiglu, backward", swiglu._backward, both, {"BLOCK": 1024}),
        Case("rope", rope._turn, turned, steps),
        Case(
            "token_logprobs",
            logprobs._normaliser,
            logits | {"logp": fp32, "lse": fp32, "scale": "fp32"},
            {"SIZE": 4096},
            8,
        ),
        Case(
            "token_logprobs, backward",
            logprobs._slope,
            logits | {"lse": fp32, "grad": fp32, "scale": "fp32"},
            {"SIZE": 4096},
            8,
        ),
    ]


def _tile(tile: tuple[int, int, int]) -> tuple[dict[str, Any], int]:
    """Constants and warps of an attention kernel with V3's heads."""
    return shape_of(192, 128, True, tile), tile[2]


def build(case: Case, chip: Chip) -> Built:
    """Compile one kernel for one chip.

    Raises:
        R1Error: Triton is missing, or the kernels are interpreted in this process.
    """
    if triton is None or interpreted():
        raise R1Error(
            "build: needs the package triton, and TRITON_INTERPRET unset; start a "
            "process of its own"
        )
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {
        name: "constexpr" if name in case.constants else case.types.get(name, "i32")
        for name in case.kernel.arg_names
    }
    source = ASTSource(case.kernel, signature=types, constexprs=case.constants)
    made = triton.compile(
        source,
        target=GPUTarget(chip.backend, chip.arch, chip.warp),
        options={"num_warps": case.warps, "num_stages": 2},
    )
    cuda = chip.backend == "cuda"
    text = made.asm["ptx" if cuda else "amdgcn"]
    registers, spilled = _ptxas(text) if cuda else _amd(text)
    shared = made.metadata.shared
    found = [f"{text.count(m)} {m}" for m in MATRIX if m in text]
    blocks = _resident(chip, registers, shared, case.warps)
    return Built(
        case.name, chip.name, registers, spilled, shared, ", ".join(found), blocks
    )


def _ptxas(ptx: str) -> tuple[int, int]:
    """Registers of a thread and bytes spilled, as NVIDIA's assembler reports them."""
    from triton import knobs

    (arch,) = re.findall(r"^\.target (\w+)", ptx, re.M)
    tool = knobs.nvidia.ptxas_blackwell if arch >= "sm_100" and len(arch) > 6 else None
    tool = tool or knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={arch}", str(path), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    (registers,) = re.findall(r"Used (\d+) registers", said.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said.stderr)
    return int(registers), sum(map(int, spills))


def _amd(text: str) -> tuple[int, int]:
    (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", text)
    (spilled,) = re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)
    return int(registers), 4 * int(spilled)


def _resident(chip: Chip, registers: int, shared: int, warps: int) -> int:
    """Blocks of this kernel that one multiprocessor can hold at a time."""
    threads = warps * chip.warp
    rounded = -(-max(registers, 1) // 8) * 8
    fits = [chip.threads // threads, chip.registers // (rounded * threads)]
    if shared:
        fits.append(chip.shared // shared)
    return min(fits)


def table(rows: Iterator[Built] | list[Built]) -> str:
    """The table as Markdown."""
    lines = [
        "| kernel | chip | registers | spilled, B | shared, B | matrix | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.case} | {r.chip} | {r.registers} | {r.spilled} | {r.shared:,} | "
        f"{r.matrix or '-'} | {r.blocks} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile everything; print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    where = parser.parse_args().write
    text = table([build(case, chip) for case in cases() for chip in CHIPS])
    if where:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
