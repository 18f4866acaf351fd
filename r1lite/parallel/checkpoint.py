"""Checkpoints of a spread-out model, readable by any number of ranks.

Every rank writes the part it holds (torch.distributed.checkpoint). The files say
where each part lies in the whole tensor, so that what two ranks saved loads on
one or on four. A folder carries its final name only once it is complete.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from r1lite.errors import R1Error
from r1lite.parallel import parts
from r1lite.parallel.files import SafeReader, check_note, reason, write_note
from r1lite.parallel.mesh import Mesh

# One process is a case of its own here, not an oversight.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class Checkpoints:
    """The checkpoints of one run: `root`/step-00000100 and so on.

    Every rank makes one, at the same time, on a file system that all ranks see.

    Args:
        fingerprint: of the configuration; another one's checkpoint is refused.
        mesh: None in a run of one process.
        keep: so many complete checkpoints stay.
    """

    def __init__(
        self, root: Path, fingerprint: str, mesh: Mesh | None = None, keep: int = 2
    ) -> None:
        self.root, self.fingerprint, self.keep = root, fingerprint, keep
        self.mesh = mesh
        self._first = mesh is None or dist.get_rank() == 0
        # Its own group: a save in the background must not answer to a message of
        # the training step, and it runs on the CPU whatever trains.
        self._group = dist.new_group(backend="gloo") if mesh else None
        self._running: tuple[Path, Future[None]] | None = None

    def save(
        self, step: int, model: nn.Module, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        """Write the state after `step` steps, whole or not at all.

        Raises:
            R1Error: it could not be written; the older checkpoints stand.
        """
        self.save_async(step, model, optimizers)
        self.wait()

    def save_async(
        self, step: int, model: nn.Module, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        """Copy the state now, write it while training goes on.

        Waits for the save before, if that still runs. An error shows at the next
        save or `wait`, whichever comes first.
        """
        self.wait()
        folder = self._folder(step)
        if folder.exists():
            raise R1Error(f"checkpoint {folder}: exists already; delete it first")
        partial = folder.with_suffix(".partial")
        if self._first:
            shutil.rmtree(partial, ignore_errors=True)
        self._all()
        state = parts.model_parts(model, self.mesh) | parts.optimizer_parts(
            model, optimizers, self.mesh
        )
        written = dcp.async_save(
            state,
            checkpoint_id=partial,
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(written, Future)
        named: Future[None] = Future()
        self._running = folder, named
        written.add_done_callback(lambda done: self._name(step, done, named))

    def wait(self) -> None:
        """Return when the running save, if any, has its final name.

        Raises:
            R1Error: it could not be written; the older checkpoints stand.
        """
        if self._running is None:
            return
        (folder, named), self._running = self._running, None
        error: BaseException | None = None
        try:
            named.result()
        except (CheckpointException, OSError, RuntimeError) as e:
            error = e
        if not self._all(error is None):
            why = reason(error) if error else "another rank says why"
            raise R1Error(
                f"checkpoint {folder}: could not be written ({why}); free some disk "
                "space and run the same command again, it resumes"
            ) from error

    def load(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> int:
        """Restore the newest checkpoint in place. Returns its step, 0 without one.

        Learning rates are not part of it: they are a function of the step.

        Raises:
            R1Error: it is damaged, or belongs to something else. Model and
                optimizers may be half restored then.
        """
        step = self._newest()
        if step == 0:
            return 0
        folder = self._folder(step)
        check_note(folder, self.fingerprint)
        reader = SafeReader(folder)
        parts.make_room_(model, optimizers, reader.sizes())
        state = parts.model_parts(model, self.mesh)
        moments = parts.optimizer_parts(model, optimizers, self.mesh)
        if optimizers and not moments:
            raise R1Error(
                f"checkpoint {folder}: holds no optimizer's state; load the model alone"
            )
        state |= moments
        reader.check(state)
        try:
            dcp.load(
                dict[str, Any](state),
                storage_reader=reader,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except (CheckpointException, OSError, RuntimeError, ValueError) as e:
            raise R1Error(
                f"checkpoint {folder}: cannot be read ({reason(e)}); delete it, the "
                "one before is taken then"
            ) from e
        return step

    def _folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def _all(self, well: bool = True) -> bool:
        """Wait for every rank; is every one well?"""
        told = torch.tensor(int(well))
        if self._group is not None:
            dist.all_reduce(told, dist.ReduceOp.MIN, group=self._group)
        return bool(told)

    def _steps(self) -> list[int]:
        names = [p.name[5:] for p in self.root.glob("step-*") if p.is_dir()]
        return sorted(int(n) for n in names if n.isdigit())

    def _newest(self) -> int:
        """What rank 0 sees, for all have to load the same."""
        step = torch.tensor((self._steps() or [0])[-1])
        if self._group is not None:
            dist.broadcast(step, 0, group=self._group)
        return int(step)

    def _name(self, step: int, written: Future[Any], named: Future[None]) -> None:
        """In the saving thread, when every rank has written its part."""
        try:
            written.result()
            if self._first:
                partial = self._folder(step).with_suffix(".partial")
                write_note(partial, step, self.fingerprint)
                os.rename(partial, self._folder(step))
                for old in self._steps()[: -self.keep]:
                    shutil.rmtree(self._folder(old))
            named.set_result(None)
        except BaseException as e:
            named.set_exception(e)
