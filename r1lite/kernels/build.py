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

from r1lite.errors import R1Error
from r1lite.kernels.cases import Case, cases
from r1lite.kernels.choose import interpreted, triton

TENSOR_COLUMNS = 512  # of tensor memory in a Blackwell multiprocessor
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
class Built:
    """What the compiler says of one kernel on one chip."""

    case: str
    chip: str
    registers: int
    spilled: int
    shared: int
    matrix: str
    blocks: int


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
    # What a launch would find: addresses and most sizes are multiples of 16.
    whole = [
        (i,)
        for i, (name, kind) in enumerate(types.items())
        if kind[0] == "*" or (kind == "i32" and name not in case.odd)
    ]
    attributes = {key: [["tt.divisibility", 16]] for key in whole}
    source = ASTSource(case.kernel, types, case.constants, attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    made = triton.compile(
        source,
        target=GPUTarget(chip.backend, chip.arch, chip.warp),
        options=options,
    )
    cuda = chip.backend == "cuda"
    text = made.asm["ptx" if cuda else "amdgcn"]
    registers, spilled = _ptxas(text) if cuda else _amd(text)
    shared = made.metadata.shared
    found = [f"{text.count(m)} {m}" for m in MATRIX if m in text]
    columns = getattr(made.metadata, "tmem_size", None) or 0
    blocks = _resident(chip, registers, shared, case.warps, columns)
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


def _resident(chip: Chip, registers: int, shared: int, warps: int, columns: int) -> int:
    """Blocks of this kernel that one multiprocessor can hold at a time.

    columns: of Blackwell's tensor memory, where its matrix unit adds up.
    """
    threads = warps * chip.warp
    rounded = -(-max(registers, 1) // 8) * 8
    fits = [chip.threads // threads, chip.registers // (rounded * threads)]
    if shared:
        fits.append(chip.shared // shared)
    if columns:
        fits.append(TENSOR_COLUMNS // columns)
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


def _everything() -> Iterator[tuple[Case, Chip]]:
    """Kernel by kernel, each on every chip."""
    for same in zip(*(cases(chip.name) for chip in CHIPS), strict=True):
        yield from zip(same, CHIPS, strict=True)


def _main() -> None:
    """Compile everything; print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    where = parser.parse_args().write
    text = table([build(case, chip) for case, chip in _everything()])
    if where:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    _main()
