"""Every kernel compiles for four GPUs; the committed table is what comes out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from r1lite.kernels import build
from r1lite.kernels.cases import cases

TABLE = Path(__file__).parents[2] / "results" / "kernels" / "compile.md"
Row = tuple[str, str, int, int, int, str, int]


def rows(text: str) -> list[Row]:
    found = []
    for line in text.splitlines()[2:]:
        name, chip, registers, spilled, shared, matrix, blocks = (
            cell.strip() for cell in line.strip("|").split("|")
        )
        numbers = int(registers), int(spilled), int(shared.replace(",", ""))
        found.append((name, chip, *numbers, matrix, int(blocks)))
    return found


@pytest.mark.timeout(900)
def test_the_table_is_made_again(tmp_path: Path) -> None:
    """In a process of its own: here the kernels are interpreted."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "r1lite.kernels.build"],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == TABLE.read_text()


def test_what_the_table_promises() -> None:
    found = rows(TABLE.read_text())
    assert len({r[0] for r in found}) * 4 == len(found) >= 100
    wanted = {"sm_80": "mma.sync", "sm_90": "wgmma"}
    wanted |= {"sm_100": "tcgen05", "gfx942": "v_mfma"}
    limits = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
    for name, chip, _, spilled, shared, matrix, blocks in found:
        assert spilled == 0, (name, chip, spilled)
        assert shared <= limits[chip]
        assert blocks >= 1
        if re.match("attention|mla_decode, parts", name) or "product" in name:
            assert wanted[chip] in matrix, (name, chip, matrix)


SMALL = """
from dataclasses import replace
import torch
from r1lite.kernels import attention, build, cases, choose, mla_decode

tiles = {"attention": attention.FORWARD, "attention, dk dv": attention.BACK_KEYS,
         "attention, dq": attention.BACK_QUERIES, "mla_decode, parts": mla_decode.TILES}
for chip, room in ((build.CHIPS[0], 99 * 1024), (build.CHIPS[3], 64 * 1024)):
    choose.chip_of = lambda x: chip.name
    for case in cases.cases(chip.name):
        if case.name in tiles:
            tile = choose.tile_for(tiles[case.name], torch.empty(0))
            wide = {k: v.replace("bf16", "fp32") for k, v in case.types.items()}
            sizes = case.constants | {"M": tile.m, "N": tile.n}
            built = build.build(replace(case, types=wide, constants=sizes), chip)
            print(built.shared <= room, chip.name, case.name, built.shared)
"""


@pytest.mark.timeout(300)
def test_float32_fits_in_the_smallest_shared_memory(tmp_path: Path) -> None:
    """V3's widths on sm_86, sm_89 and sm_120, and on gfx942."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SMALL],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert len(said) == 8
    assert [line for line in said if not line.startswith("True")] == []


def launches() -> set[str]:
    """Every kernel that some line of r1lite.kernels starts: `kernel[grid](...)`."""
    found = set()
    for path in Path(build.__file__).parent.glob("*.py"):
        module = import_module(f"r1lite.kernels.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                said = ast.unparse(node.func.value)
                if said.partition(".")[0] in vars(module):  # not a local dictionary
                    kernel = eval(said, vars(module))
                    found.add(f"{kernel.fn.__module__}.{kernel.fn.__name__}")
    return found


@pytest.mark.parametrize("chip", [c.name for c in build.CHIPS])
def test_every_kernel_is_in_the_table(chip: str) -> None:
    compiled = {f"{c.kernel.fn.__module__}.{c.kernel.fn.__name__}" for c in cases(chip)}
    assert compiled == launches()
    assert len(compiled) == 24
    assert {r[0] for r in rows(TABLE.read_text())} == {c.name for c in cases(chip)}
