"""What the test processes do; run under torchrun by test_expert_parallel.py.

Words: a directory, then layouts like ep2 or ep2-fsdp:10 (so many steps), each
trained from the same seed. Several in one start: starting costs more than fifty
steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from r1lite.config import R1Config
from r1lite.model import R1Model
from r1lite.moe.balance import update_bias_
from r1lite.mtp import mtp_loss
from r1lite.parallel import shard
from r1lite.parallel.fsdp import fully_shard_
from r1lite.parallel.mesh import Mesh, finish_backward_, make_mesh

ROWS, SEQ, STEPS, LR, CLIP = 4, 12, 50, 0.1, 2.2


def config() -> R1Config:
    return R1Config.preset("nano").with_(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_nextn_predict_layers=1,
        n_routed_experts=8,
        moe_intermediate_size=16,
        initializer_range=0.1,
    )


def laid_out(layout: str) -> tuple[Mesh, bool]:
    """The mesh of a layout like ep2-fsdp, and whether FSDP cuts the rest."""
    ep, *more = layout.removeprefix("ep").split("-")
    return make_mesh(ep=int(ep)), "fsdp" in more


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step % 4)
    return torch.randint(64, (ROWS, SEQ + 1), generator=generator)


def build(mesh: Mesh | None = None, fsdp: bool = False) -> R1Model:
    """The same model in every layout."""
    torch.manual_seed(0)
    model = R1Model(config()).train()
    if mesh is not None and fsdp:
        fully_shard_(model, mesh)
    elif mesh is not None:
        shard.shard_experts_(model, mesh.ep)
    return model


def backward(model: R1Model, step: int, mesh: Mesh | None = None) -> tuple[Tensor, ...]:
    """Forward and backward of the global batch; its loss and gradient norm."""
    ids = batch(step) if mesh is None else mesh.rows(batch(step))
    output = model(ids[:, :-1])
    loss = F.cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten())
    loss = loss + 0.3 * mtp_loss(model, ids[:, :-1], output.hidden)
    loss = loss * len(ids) / ROWS  # this rank's share of the global mean
    loss.backward()
    value = loss.detach().clone()
    if mesh is None:
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        return value, norm.double()
    dist.all_reduce(value, group=mesh.world)
    return value, finish_backward_(model, mesh, CLIP)


def train(
    out: Path, mesh: Mesh | None = None, fsdp: bool = False, steps: int = STEPS
) -> None:
    """Plain SGD; `out` gets losses, norms, the first gradients and the weights."""
    model = build(mesh, fsdp)
    losses, norms, sent, first = [], [], 0, {}
    for step in range(steps):
        value, norm = backward(model, step, mesh)
        if mesh is not None:
            sent += sum(m.dispatcher.sent_rows for m in shard.moe_layers(model))
        first = first or gradients(model, mesh)
        losses.append(value)
        norms.append(norm)
        load = update_bias_(model, 0.01)
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= LR * p.grad
                    p.grad = None
    found = {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "gradients": first,
        "load": load,
        "sent": sent,
        "held": sum(local(p).numel() for p in shard.shared_parameters(model)),
        "state": state(model, mesh),
    }
    if mesh is None or dist.get_rank() == 0:
        torch.save(found, out)


def state(model: nn.Module, mesh: Mesh | None) -> dict[str, Tensor]:
    """The whole model's weights."""
    return model.state_dict() if mesh is None else shard.gather_experts(model, mesh.ep)


def local(value: Tensor) -> Tensor:
    """What this rank stores of it."""
    return value.to_local() if isinstance(value, DTensor) else value


def gradients(model: nn.Module, mesh: Mesh | None) -> dict[str, Tensor]:
    """Every parameter's gradient, whole."""
    experts = {id(p) for p in shard.expert_parameters(model)}
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        found[name] = p.grad.clone()
        if mesh is not None and id(p) in experts:
            found[name] = shard.gather_parts(found[name], mesh.ep)
        elif isinstance(p.grad, DTensor):
            found[name] = p.grad.full_tensor()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for layout in sys.argv[2:]:
        name, _, steps = layout.partition(":")
        mesh, fsdp = laid_out(name)
        train(Path(sys.argv[1], f"{name}.pt"), mesh, fsdp, int(steps or STEPS))
    dist.destroy_process_group()
