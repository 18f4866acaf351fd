"""Starts the scripts of this folder in several real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def torchrun(
    script: str, ranks: int, *words: object, options: Sequence[str] = ()
) -> str:
    """Run a script of this folder in `ranks` processes; returns what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    path = Path(__file__).with_name(script)
    # The scripts import each other as `parallel.workers`, as the tests do.
    folders = [str(path.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, *options, f"--nproc-per-node={ranks}", str(path), *map(str, words)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
