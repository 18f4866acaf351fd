"""`r1lite bench kernels`: right before fast, and a clear no without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.kernels import bench
from r1lite.kernels.bench import Measured, bench_table, measure
from r1lite.kernels.work import Workload
from r1lite.kernels.workloads import workloads

NANO = R1Config.preset("nano")


def test_every_kernel_agrees_with_its_reference() -> None:
    """All workloads at nano's widths, backward passes too, before anything is timed."""
    seen = []
    for work in workloads(NANO, 5, "cpu", torch.float32):
        eager = work.runner(work.reference)()
        eager = eager if isinstance(eager, tuple) else (eager,)
        pairs = zip(work.compared(work.kernel()), work.compared(eager), strict=True)
        assert max(bench._error(a, b) for a, b in pairs) < 1e-5, work.name
        seen.append(work.name)
    assert len(set(seen)) == len(seen) == 23


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where Triton is loaded as the command wants it."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["CUDA_VISIBLE_DEVICES"] = env["HIP_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "r1lite", "bench", "kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_without_a_gpu_it_says_so() -> None:
    done = cli()
    assert done.returncode == 2
    assert done.stderr.startswith("r1lite: bench kernels: needs a GPU")
    assert "--interpret" in done.stderr


def test_interpreted_it_runs_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    done = cli("--interpret", "--only", "one row", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.read_text()
    header, _, *rows = done.stdout.splitlines()
    assert header == bench.HEADER
    assert [row.split(" | ")[0] for row in rows] == ["| int8 one row", "| int4 one row"]
    for row in rows:
        _, error, ms, eager, compiled, library, share = row.strip("| ").split(" | ")
        assert float(error) < 1e-4
        assert float(ms) > 0
        assert eager.endswith(" x") and compiled.endswith(" x")
        assert library.endswith("x cuBLAS 16 bit")
        assert share == "-"


def one(name: str) -> Workload:
    return next(w for w in workloads(NANO, 3, "cpu", torch.float32) if w.name == name)


def test_a_kernel_that_computes_wrongly_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = replace(one("swiglu"), reference=lambda gate, up: gate * up)
    monkeypatch.setattr(bench, "_milliseconds", None)
    with pytest.raises(R1Error, match="swiglu: differs from its reference by"):
        measure(work, 1e-4)


def test_numbers_that_are_none_do_not_agree() -> None:
    work = replace(one("swiglu"), reference=lambda gate, up: gate * float("nan"))
    with pytest.raises(R1Error, match="swiglu: differs"):
        measure(work, 1e-4)


def test_a_way_that_does_not_exist_is_a_dash() -> None:
    def missing() -> None:
        raise RuntimeError("not supported on this GPU")

    found = measure(replace(one("swiglu"), rival=("F.swiglu", missing)), 1e-4)
    assert found.rival is None
    assert found.line.endswith("| - F.swiglu | - |")
    row = Measured("a", 1e-6, 2.0, 5.0, None, 3.0, "SDPA", 0.5).line
    assert row == "| a | 1.0e-06 | 2.000 | 2.50 x | - | 1.50 x SDPA | 50% |"


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(R1Error, match="none is called 'conv'"):
        bench_table(True, "conv")
    with pytest.raises(R1Error, match="TRITON_INTERPRET unset"):
        bench_table(False)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(R1Error, match="set TRITON_INTERPRET=1"):
        bench_table(True)
    monkeypatch.setattr(bench, "triton", None)
    with pytest.raises(R1Error, match="pip install triton"):
        bench_table(True)
