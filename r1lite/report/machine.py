"""The machine a run was made on, as far as it can be told without asking."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from r1lite.report.parts import Machine


def this_machine() -> Machine:
    """Processor, cores, versions and the commit of the package's source."""
    commit, changed = _commit()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Machine(
        cpu=_cpu_name(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_gb=_memory_gb(),
        accelerator=gpu,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        commit=commit,
        changed_since_commit=changed,
    )


def _cores() -> int:
    # The cores this process may use; a container often has fewer than the host.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gb() -> float | None:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(size / 2**30, 1)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> tuple[str | None, bool]:
    # An installed package may lie inside somebody else's repository (.venv):
    # the commit counts only if that repository holds this very file.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, False
    return _git("rev-parse", "--short=12", "HEAD"), bool(
        _git("status", "--porcelain", "--untracked-files=no")
    )
