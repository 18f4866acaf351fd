"""`metrics.jsonl`: one line per step, for the report and for the reader's eyes."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from r1lite.errors import R1Error


class MetricsLog:
    """Appends rows to `run/metrics.jsonl` and mirrors numbers to TensorBoard.

    A resumed stage calls `rewind` first, so that a step is never there twice.
    """

    def __init__(self, run: Path, tensorboard: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self._board: Any = None
        self._board_dir = run / "tensorboard" if tensorboard else None

    def rewind(self, stage: str, step: int) -> list[dict[str, Any]]:
        """Forget this stage's rows from `step` on; returns those that stay."""
        rows = read(self.path)
        keep = [r for r in rows if r["stage"] != stage or r["step"] < step]
        if len(keep) != len(rows) or not _ends_whole(self.path):
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(r) + "\n" for r in keep))
            os.replace(partial, self.path)
        return [r for r in keep if r["stage"] == stage]

    def append(self, stage: str, step: int, **values: Any) -> None:
        """Write one row: numbers, or nested lists such as the expert load."""
        row = {"stage": stage, "step": step, **values, "memory_mb": peak_memory_mb()}
        try:
            with self.path.open("a") as f:
                f.write(json.dumps(row) + "\n")
        except OSError as e:
            raise R1Error(
                f"{self.path}: cannot be written ({e.strerror}); free some disk "
                "space and run the same command again, it resumes"
            ) from e
        if self._board_dir is not None:
            self._to_board(stage, step, values)

    def _to_board(self, stage: str, step: int, values: dict[str, Any]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._board_dir))
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows; the half line that a kill may leave at the end is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _ends_whole(path: Path) -> bool:
    return not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
