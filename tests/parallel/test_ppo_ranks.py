"""PPO and a reward model on several ranks take the steps of one process."""

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

SCRIPT = "ppo_workers.py"
SAME = {
    "ppo": ("policy_loss", "value_loss", "entropy", "clip_frac", "kl", "explained"),
    "reward": ("accuracy",),
}
LAYOUTS: dict[str, tuple[int, dict[str, Any], int]] = {
    "two copies": (2, {}, 0),
    "experts shared out": (2, {"ep": 2}, 2),
    "three ranks, uneven shares": (3, {}, 0),
    "FSDP, the value head cut as well": (2, {"ep": 2, "fsdp": True}, 0),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    path = Path(__file__).with_name(SCRIPT)
    folders = [str(path.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(path), str(out), "{}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_train_as_one_process(alone: Path, tmp_path: Path, name: str) -> None:
    ranks, layout, micro_rows = LAYOUTS[name]
    out = tmp_path / "run"
    torchrun(SCRIPT, ranks, out, json.dumps(layout), micro_rows)
    for mine, theirs in zip(rows(out), rows(alone), strict=True):
        assert mine["tokens"] == theirs["tokens"]
        for key in ("loss", "grad_norm", *SAME[theirs["stage"]]):
            assert mine[key] == pytest.approx(theirs[key], abs=5e-5), key
    found, wanted = (load_file(x / "model.safetensors") for x in (out, alone))
    assert found.keys() == wanted.keys() >= {"judge.score.weight"}
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=5e-5, rtol=0, msg=key)
