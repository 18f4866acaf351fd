"""Checkpoints of a stage in progress: atomic, safe to load, tied to a config.

`torch.load(weights_only=True)` is the only way in: a checkpoint can hold
tensors, numbers and text, never code.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from r1lite.errors import R1Error

FORMAT = 1


def save(
    path: Path,
    fingerprint: str,
    step: int,
    model: nn.Module,
    optimizers: list[Optimizer],
    extra: dict[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps. A crash leaves the old file whole."""
    state = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "step": step,
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "extra": extra or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as e:  # torch hides a full disk in RuntimeError
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free // 1_000_000
        reason = e.strerror if isinstance(e, OSError) else f"{free} MB are free"
        raise R1Error(
            f"checkpoint {path}: could not be written ({reason}); free some disk "
            "space and run the same command again, it resumes"
        ) from e


def load(
    path: Path, fingerprint: str, model: nn.Module, optimizers: list[Optimizer]
) -> tuple[int, dict[str, Any]]:
    """Restore in place. Returns (steps done, extra); (0, {}) without a file.

    Raises:
        R1Error: the file is damaged, of another format, or of another config.
    """
    if not path.exists():
        return 0, {}
    state = _read(path)
    if state["fingerprint"] != fingerprint:
        raise R1Error(
            f"checkpoint {path}: belongs to another configuration; give --out "
            "another directory or delete this one"
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), state["extra"]


# What torch.load raises on a file that is not whole.
DAMAGE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError)


def _read(path: Path) -> dict[str, Any]:
    remedy = "delete it and run again, the stage starts from its beginning"
    try:
        # Onto the CPU: what a GPU wrote can be resumed without one.
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (*DAMAGE, pickle.UnpicklingError) as e:
        raise R1Error(
            f"checkpoint {path}: cannot be read ({_reason(e)}); {remedy}"
        ) from e
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise R1Error(
            f"checkpoint {path}: was written by another version of r1lite; {remedy}"
        )
    return state


def _reason(e: BaseException) -> str:
    return str(e).splitlines()[0][:120] if str(e) else type(e).__name__
