"""Saves on two ranks, resumes on four; run under torchrun by test_checkpoint.py.

Words: save or resume, a directory, then layouts like ep2 or ep2-fsdp.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from parallel.workers import backward, batch, build, laid_out
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.moe.balance import update_bias_
from r1lite.parallel.checkpoint import Checkpoints
from r1lite.parallel.mesh import Mesh

SAVED, LAST, FINGERPRINT = 3, 6, "the test's"


class Trainer:
    """A model, AdamW and the checkpoints in `root`."""

    def __init__(self, root: Path, mesh: Mesh | None = None, fsdp: bool = False):
        self.mesh = mesh
        self.model = build(mesh, fsdp)
        self.optimizers = [torch.optim.AdamW(self.model.parameters(), 0.02)]
        self.checkpoints = Checkpoints(root, FINGERPRINT, mesh)

    def train(self, start: int, end: int) -> Tensor:
        """The losses of the steps from `start` to before `end`."""
        losses = []
        for step in range(start, end):
            losses.append(backward(self.model, step, self.mesh)[0])
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()
            update_bias_(self.model, 0.01)
        return torch.stack(losses)

    def save(self, step: int) -> None:
        self.checkpoints.save_async(step, self.model, self.optimizers)

    def resume(self) -> int:
        return self.checkpoints.load(self.model, self.optimizers)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Of one batch that every rank reads."""
        return self.model(batch(0)).logits


def saves(root: Path, mesh: Mesh | None = None, fsdp: bool = False) -> None:
    """Trains on while it saves; writes what a resumed run has to find."""
    trainer = Trainer(root, mesh, fsdp)
    trainer.train(0, SAVED)
    logits = trainer.logits()
    trainer.save(SAVED)
    losses = trainer.train(SAVED, LAST)  # changes what is being written, if not copied
    trainer.checkpoints.wait()
    if mesh is None or dist.get_rank() == 0:
        torch.save({"logits": logits, "losses": losses}, root / "wanted.pt")


def resumes(root: Path, mesh: Mesh | None = None, fsdp: bool = False) -> None:
    """Finds the same logits, and the same losses from there on."""
    trainer = Trainer(root, mesh, fsdp)
    with torch.no_grad():  # other weights than those of the seed
        for p in trainer.model.parameters():
            p.zero_()
    assert trainer.resume() == SAVED
    wanted = torch.load(root / "wanted.pt", weights_only=True)
    close = torch.testing.assert_close
    close(trainer.logits(), wanted["logits"], atol=1e-5, rtol=0)
    close(trainer.train(SAVED, LAST), wanted["losses"], atol=1e-5, rtol=0)


def one_rank_fails(root: Path) -> None:
    """Then no rank believes in the checkpoint, and none waits for another."""
    trainer = Trainer(root, laid_out("ep2")[0])
    save = torch.save

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if dist.get_rank() == 1:
        torch.save = full
    try:
        trainer.save(1)
        trainer.checkpoints.wait()
    except R1Error as error:
        assert "No space left" in str(error), error
    else:
        raise AssertionError("a part is missing")
    torch.save = save
    assert trainer.resume() == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    task, root = sys.argv[1], Path(sys.argv[2])
    for layout in sys.argv[3:]:
        if task == "save":
            saves(root / layout, *laid_out(layout))
        else:
            for saved in sorted(root.iterdir()):
                resumes(saved, *laid_out(layout))
    if task == "save":
        one_rank_fails(root.with_name("fails"))
    if dist.get_rank() == 0:
        print(task, "done")
    dist.destroy_process_group()
