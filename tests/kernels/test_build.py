"""Every kernel compiles for four GPUs; the committed table is what comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "results" / "kernels" / "compile.md"
# Where a kernel spills, by name; everything else keeps its numbers in registers.
SPILLS = {("attention, dk dv", "sm_80"), ("attention, dk dv", "gfx942")}
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
    assert len({r[0] for r in found}) * 4 == len(found) >= 60
    wanted = {"sm_80": "mma.sync", "sm_90": "wgmma"}
    wanted |= {"sm_100": "tcgen05", "gfx942": "v_mfma"}
    limits = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
    for name, chip, _, spilled, shared, matrix, blocks in found:
        assert (spilled > 0) == ((name, chip) in SPILLS), (name, chip, spilled)
        assert shared <= limits[chip]
        assert blocks >= 1
        if re.match("attention|grouped", name):
            assert matrix != "-", (name, chip)
        if re.match("attention$|grouped", name):  # tiles of 64 rows
            assert wanted[chip] in matrix, (name, chip, matrix)
