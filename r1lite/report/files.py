"""Reading metrics.jsonl and writing files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from r1lite.errors import R1Error

METRICS_NAME = "metrics.jsonl"
Metrics = dict[str, list[dict[str, Any]]]


def read_metrics(run_dir: Path | str) -> Metrics:
    """The records of run_dir/metrics.jsonl by stage, each stage in step order.

    A run that was killed leaves half a line behind, and after it resumes it
    may log a step again: half lines are passed over, the last record of a
    step counts. A missing file gives no stages.
    """
    path = Path(run_dir) / METRICS_NAME
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise R1Error(f"{path}: cannot be read ({error.strerror}); check it") from None
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            stage, step = str(record["stage"]), int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        stages.setdefault(stage, {})[step] = record
    return {
        stage: [steps[step] for step in sorted(steps)]
        for stage, steps in stages.items()
    }


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; R1Error if it cannot be written."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or error
        raise R1Error(
            f"{path}: cannot be written ({reason}); free disk space or choose "
            "another run directory"
        ) from None
