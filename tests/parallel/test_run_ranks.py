"""`r1lite run` on several ranks: the same training, and it survives a death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.launch import torchrun
from safetensors.torch import load_file

SHORT = {
    "pretrain.steps": 6,
    "pretrain.batch_size": 9,  # shares of unequal size
    "sft.steps": 6,
    "sft.tokens": 700,
    "grpo.steps": 2,
    "controls.enabled": "false",
    "evaluation.problems": 4,
    "evaluation.pass_problems": 2,
    "evaluation.sweep": "[]",
    "checkpoint_seconds": 0.0,
}
EXACT = ("tokens", "max_violation", "lr")
Rows = list[dict[str, Any]]


def words(out: Path, changes: dict[str, object]) -> list[str]:
    pairs = [f"--set={k}={v}" for k, v in {**SHORT, **changes}.items()]
    return ["run", "smoke", "--quiet", f"--out={out}", *pairs]


def alone(out: Path, **changes: object) -> Path:
    command = [sys.executable, "-m", "r1lite", *words(out, dotted(changes))]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def together(out: Path, ranks: int, *options: str, **changes: object) -> Path:
    torchrun("run_workers.py", ranks, *words(out, dotted(changes)), options=options)
    return out


def dotted(changes: dict[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in changes.items()}


def rows(out: Path, stage: str) -> Rows:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["stage"] == stage]


def same_training(
    found: Path, wanted: Path, atol: float, exact: tuple[str, ...] = EXACT
) -> None:
    """Every supervised step: losses, gradient norm, loads and tokens."""
    for stage in ("pretrain", "sft"):
        pairs = zip(rows(found, stage), rows(wanted, stage), strict=True)
        for mine, theirs in pairs:
            for name in ("loss", "grad_norm", "mtp_loss"):
                if name in theirs:
                    assert mine[name] == pytest.approx(theirs[name], abs=atol), name
            for name in exact:
                assert mine[name] == theirs[name], name


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return together(tmp_path_factory.mktemp("two") / "run", 2, parallel__ep=2)


def test_two_ranks_train_as_one(one: Path, two: Path) -> None:
    same_training(two, one, 2e-5)
    assert len(rows(two, "grpo")) == SHORT["grpo.steps"]
    assert (two / "report.html").exists()


def test_fsdp_with_muon_and_one_rank_a_node_trains_as_one(
    one: Path, tmp_path: Path
) -> None:
    changes = {"parallel__fsdp": "true", "parallel__node_size": 1}
    run = together(tmp_path / "run", 2, parallel__ep=2, **changes)
    same_training(run, one, 2e-5)


def test_two_pipeline_stages_train_as_one_and_are_joined_after(
    tmp_path: Path,
) -> None:
    """What a stage logs of its routers is its own; SFT has both ranks as dp."""
    rows_of_4 = {"pretrain__batch_size": 8}
    one = alone(tmp_path / "one", **rows_of_4)
    run = together(tmp_path / "run", 2, parallel__pp=2, **rows_of_4)
    same_training(run, one, 2e-5, exact=("tokens", "lr"))


def test_a_growing_batch_is_the_same_on_two_ranks_and_two_stages(
    tmp_path: Path,
) -> None:
    """Every rank plans the same batches; the rate follows the tokens of all."""
    changes = {
        "pretrain__steps": 3,
        "pretrain__batch_size": 16,
        "pretrain__ramp": "{start = 0.5, share = 0.6, multiple = 8}",
        "pretrain__phases": "[{share = 0.5}, {share = 0.5, end = 0.1}]",
        "sft__steps": 1,
        "grpo__steps": 1,
    }
    one = alone(tmp_path / "one", **changes)
    assert [r["tokens"] for r in rows(one, "pretrain")] == [1024, 2048, 4096, 6144]
    for name, layout in (("data", {}), ("stages", {"parallel__pp": 2})):
        run = together(tmp_path / name, 2, **changes, **layout)
        same_training(run, one, 2e-5, exact=("tokens", "lr"))


def test_micro_batches_and_recomputation_train_as_the_whole(
    one: Path, tmp_path: Path
) -> None:
    changes = {"compute__micro_rows": 2, "compute__keep": "block"}
    run = alone(tmp_path / "run", **changes)
    same_training(run, one, 2e-5)
    lengths = [[r["length"] for r in rows(x, "grpo")] for x in (run, one)]
    assert lengths[0] == lengths[1]


def test_bfloat16_comes_close(one: Path, tmp_path: Path) -> None:
    run = alone(tmp_path / "run", compute__precision="bfloat16")
    pairs = zip(rows(run, "sft"), rows(one, "sft"), strict=True)
    gaps = [abs(mine["loss"] - theirs["loss"]) for mine, theirs in pairs]
    assert 0 < max(gaps) < 0.05


def test_a_rank_killed_in_an_update_changes_nothing(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun starts both ranks again; they go on from the last checkpoint."""
    monkeypatch.setenv("R1_KILL", "9")  # the third update of SFT
    run = together(tmp_path / "run", 2, "--max-restarts=1", parallel__ep=2)
    same_training(run, two, 0.0)
    found, wanted = (load_file(x / "sft" / "model.safetensors") for x in (run, two))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_layout_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "r1lite",
        "run",
        "smoke",
        f"--out={tmp_path / 'x'}",
    ]
    done = subprocess.run(
        [*command, "--set=parallel.ep=2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "torchrun --nproc-per-node=2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
