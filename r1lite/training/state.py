"""The state of a stage in progress: one file for one process, a folder for a team."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from r1lite.errors import R1Error
from r1lite.parallel.checkpoint import Checkpoints
from r1lite.parallel.team import Team
from r1lite.training import checkpoint


class SavedState:
    """What a stage resumes from, after a kill or on another number of ranks.

    One process writes `path`.pt; several write folders in `path` while training
    goes on. Folders load on any number of ranks, the file on one.
    """

    def __init__(self, path: Path, fingerprint: str, team: Team) -> None:
        self._file, self._fingerprint = path.with_name(path.name + ".pt"), fingerprint
        self._folders = Checkpoints(path, fingerprint, team.mesh)
        self._team = team

    def load(self, model: nn.Module, optimizers: list[Optimizer]) -> int:
        """Restore in place; returns the steps done.

        Raises:
            R1Error: it is damaged, of another configuration, or one process's.
        """
        if self._team.agree(self._file.exists):
            if self._team.mesh is not None:
                raise R1Error(
                    f"checkpoint {self._file}: was saved by one process; finish the "
                    "stage with one, or delete it to start the stage again"
                )
            step, _ = checkpoint.load(self._file, self._fingerprint, model, optimizers)
            return step
        return self._folders.load(model, optimizers)

    def save(self, step: int, model: nn.Module, optimizers: list[Optimizer]) -> None:
        """Write the state after `step` steps."""
        if self._team.mesh is None:
            checkpoint.save(self._file, self._fingerprint, step, model, optimizers)
        else:
            self._folders.save_async(step, model, optimizers)

    def wait(self) -> None:
        """Return when nothing is being written."""
        self._folders.wait()


def forget(path: Path) -> None:
    """Remove the state of a stage that is done and kept elsewhere."""
    path.with_name(path.name + ".pt").unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
