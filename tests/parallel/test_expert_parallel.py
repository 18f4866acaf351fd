"""Expert parallelism in real processes equals one process: loss by loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.workers import ROWS, SEQ, STEPS, config, train

WORKERS = Path(__file__).with_name("workers.py")
EDGES = Path(__file__).with_name("edge_workers.py")


def torchrun(ranks: int, *words: str, script: Path = WORKERS) -> str:
    """Run a script of this folder in `ranks` processes; returns what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc-per-node={ranks}", str(script), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone") / "one.pt"
    train(0, 1, out)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("ranks", [2, 4])
def test_fifty_steps_equal_one_process(
    ranks: int, alone: dict[str, Any], tmp_path: Path
) -> None:
    torchrun(ranks, str(tmp_path / "many.pt"))
    many = torch.load(tmp_path / "many.pt", weights_only=True)
    assert len(many["losses"]) == STEPS
    assert alone["losses"][0] - alone["losses"][-1] > 0  # it does learn
    torch.testing.assert_close(many["losses"], alone["losses"], atol=1e-5, rtol=0)
    torch.testing.assert_close(many["norms"], alone["norms"], atol=1e-4, rtol=1e-4)
    assert torch.equal(many["load"], alone["load"])  # no token lost, none doubled
    top_k, layers = config().num_experts_per_tok, config().num_hidden_layers - 1
    assert int(many["load"].sum()) == ROWS * SEQ * top_k * layers
    assert many["sent"] > 0
    assert many["state"].keys() == alone["state"].keys()
    for name, value in alone["state"].items():
        torch.testing.assert_close(many["state"][name], value, atol=1e-4, rtol=1e-4)


def test_awkward_batches_and_their_gradients() -> None:
    """Uneven ranks, ranks and experts without tokens, experts not sharded."""
    assert "6 cases agree" in torchrun(2, script=EDGES)
