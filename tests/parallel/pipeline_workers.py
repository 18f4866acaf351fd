"""What the pipeline's test processes do; run under torchrun by test_pipeline.py.

Words: a directory, then cases like pp2-dp2-dualpipev:10 (so many steps), each
trained from the same seed; -tied ties embedding and head, -docs masks documents,
-again makes activations again in the backward pass.
Then come a checkpoint that pp2 saves for one process to find, and what is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parallel.mesh_workers import refused
from parallel.workers import config, gradients
from torch import Tensor, nn

from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.moe.balance import routers, sequence_balance_loss, update_bias_
from r1lite.mtp import mtp_loss
from r1lite.parallel import shard
from r1lite.parallel.checkpoint import Checkpoints
from r1lite.parallel.cut import gather_stages
from r1lite.parallel.mesh import Mesh, finish_backward_, make_mesh
from r1lite.parallel.pipeline import Pipelined

ROWS, SEQ, STEPS, LR, CLIP = 8, 10, 50, 0.05, 2.2
MICRO, MTP, ALPHA, GAMMA = 4, 0.3, 0.05, 0.01


class Case:
    """pp2-ep2-dualpipev-tied-docs:10, taken apart."""

    def __init__(self, name: str) -> None:
        self.name, _, steps = name.partition(":")
        self.steps = int(steps or STEPS)
        words = self.name.split("-")
        sizes = {w[:2]: int(w[2:]) for w in words if w[:2] in ("pp", "ep")}
        self.pp, self.ep = sizes.get("pp", 1), sizes.get("ep", 1)
        self.schedule: Any = "dualpipev" if "dualpipev" in words else "1f1b"
        self.tied, self.documents = "tied" in words, "docs" in words
        self.again = "block" if "again" in words else "none"

    def build(self) -> R1Model:
        """The same model in every layout: a dense layer, three with experts, MTP."""
        torch.manual_seed(0)
        sizes = config().with_(num_hidden_layers=4, tie_word_embeddings=self.tied)
        return R1Model(sizes).train()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, targets and, where they count, documents of unequal length."""
        generator = torch.Generator().manual_seed(step % 4)
        ids = torch.randint(64, (ROWS, SEQ + 1), generator=generator)
        ends = torch.randint(2, SEQ, (ROWS, 1), generator=generator)
        documents = (torch.arange(SEQ) >= ends).long() if self.documents else None
        return ids[:, :-1], ids[:, 1:], documents


Found = tuple[dict[str, float], Tensor]


def balance(layers: nn.Module) -> Tensor:
    return ALPHA * sequence_balance_loss(layers)


def whole_step(model: R1Model, case: Case, step: int) -> Found:
    """One process, one forward pass of the whole batch."""
    ids, targets, documents = case.batch(step)
    output = model(ids, document_ids=documents)
    loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    even = balance(model.layers)
    ahead = mtp_loss(model, ids, output.hidden, document_ids=documents)
    (loss + even + MTP * ahead).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    means = {"loss": loss, "mtp_loss": ahead, "balance": even}
    return {k: v.item() for k, v in means.items()}, norm.double()


class Trainer:
    """One case on one process or many."""

    def __init__(self, case: Case, mesh: Mesh | None = None) -> None:
        self.case, self.mesh, self.model = case, mesh, case.build()
        if mesh is not None:
            checkpoint_blocks_(self.model, case.again)
            shard.shard_experts_(self.model, mesh.ep)
            words = case.schedule, MICRO, MTP, balance
            self.pipe = Pipelined(self.model, mesh, *words)

    def backward(self, step: int) -> Found:
        if self.mesh is None:
            return whole_step(self.model, self.case, step)
        means = self.pipe.step(*self.case.batch(step))
        return means, finish_backward_(self.model, self.mesh, CLIP)

    def update(self) -> None:
        """Plain SGD and the balance bias."""
        update_bias_(self.model, GAMMA)
        with torch.no_grad():
            for p in self.model.parameters():
                if p.grad is not None:
                    p -= LR * p.grad
                    p.grad = None

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of every stage."""
        if self.mesh is None:
            return tensors
        return gather_stages(tensors, self.mesh.pp)

    def state(self) -> dict[str, Tensor]:
        if self.mesh is None:
            return self.model.state_dict()
        return shard.gather_experts(self.model, self.mesh.ep, self.mesh.pp)

    def load(self) -> dict[str, Tensor]:
        """Tokens of each expert in the last step, by router."""
        return {
            name: m.counts.clone()
            for name, m in self.model.named_modules()
            if m in routers(self.model)
        }


def train(out: Path, case: Case, mesh: Mesh | None = None) -> None:
    """`out` gets means, norms, the first gradients, the loads and the weights."""
    trainer = Trainer(case, mesh)
    means, norms, first = [], [], {}
    for step in range(case.steps):
        values, norm = trainer.backward(step)
        means.append(list(values.values()))
        norms.append(norm)
        first = first or trainer.whole(gradients(trainer.model, mesh))
        load = trainer.load()
        trainer.update()
    found = {
        "means": torch.tensor(means),
        "norms": torch.stack(norms),
        "gradients": first,
        "load": trainer.whole(load),
        "state": trainer.state(),
        "held": sum(p.numel() for p in trainer.model.parameters()),
    }
    if mesh is None or dist.get_rank() == 0:
        torch.save(found, out)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01)


def saves(root: Path, mesh: Mesh) -> None:
    """Two steps on two stages; rank 0 writes what one process has to find next."""
    trainer = Trainer(Case("pp2-docs"), mesh)
    optimizer = adam(trainer.model)
    checkpoints = Checkpoints(root, "the test's", mesh)
    for step in range(3):
        means, norm = trainer.backward(step)
        if step == 2:
            break
        optimizer.step()
        optimizer.zero_grad()
        update_bias_(trainer.model, GAMMA)
        checkpoints.save(step + 1, trainer.model, [optimizer])
    optimizer.step()
    wanted = {"means": means, "norm": norm, "state": trainer.state()}
    if dist.get_rank() == 0:
        torch.save(wanted, root / "wanted.pt")


def resumes(root: Path, mesh: Mesh | None = None) -> tuple[dict[str, float], Any]:
    """What the third step gives when it starts from the checkpoint."""
    trainer = Trainer(Case("pp2-dualpipev-docs"), mesh)
    with torch.no_grad():  # other weights than those of the seed
        for p in trainer.model.parameters():
            p.zero_()
    optimizer = adam(trainer.model)
    step = Checkpoints(root, "the test's", mesh).load(trainer.model, [optimizer])
    assert step == 2
    means, norm = trainer.backward(step)
    optimizer.step()
    return means, {"norm": norm, "state": trainer.state()}


def refusals(mesh: Mesh) -> None:
    """One line each, before anything is sent."""
    case = Case("pp2")
    shallow = R1Model(config())  # three layers
    for model, *words in (
        (case.build(), "1f1b", 1),
        (case.build(), "dualpipev", 3),
        (case.build(), "gpipe", 4),
        (shallow, "dualpipev", 4),
    ):
        refused(lambda given=(model, mesh, *words): Pipelined(*given))
    pipe = Pipelined(case.build(), mesh, "1f1b", MICRO)
    refused(lambda: pipe.step(*(x[:6] for x in case.batch(0)[:2])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out = Path(sys.argv[1])
    for word in sys.argv[2:]:
        case = Case(word)
        train(out / f"{case.name}.pt", case, make_mesh(case.ep, pp=case.pp))
    if dist.get_world_size() == 2:
        mesh, root = make_mesh(1, pp=2), out / "checkpoints"
        saves(root, mesh)
        dist.barrier()
        close = torch.testing.assert_close
        wanted = torch.load(root / "wanted.pt", weights_only=True)
        means, found = resumes(root, mesh)  # in a V what was saved in a line
        close(found, {k: wanted[k] for k in found}, atol=1e-5, rtol=1e-5)
        refusals(mesh)
    dist.destroy_process_group()
