"""The state of a run by name, each tensor as the part of a whole that it is.

Names do not depend on the layout, and neither do the sizes a DTensor tells: an
expert tensor says that it is rows 4 to 7 of 8, whichever ranks hold them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from r1lite.parallel.mesh import Mesh
from r1lite.parallel.shard import expert_parameters


def model_parts(model: nn.Module, mesh: Mesh | None) -> dict[str, Tensor]:
    """Parameters and buffers, sharing storage with the model.

    Returns:
        "model.<name>" to a tensor; an expert's is a DTensor over the mesh.
    """
    experts = _experts(model, mesh)
    named = dict(model.named_parameters())
    found = {}
    for name, value in model.state_dict().items():
        cut = mesh is not None and name in named and named[name] in experts
        found[f"model.{name}"] = _part(value, mesh) if cut else value
    return found


def optimizer_parts(
    model: nn.Module, optimizers: Sequence[Optimizer], mesh: Mesh | None
) -> dict[str, Tensor]:
    """Moments and step counts, "optimizer.<parameter>.<key>" to a tensor."""
    experts = _experts(model, mesh)
    found = {}
    for name, p in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                cut = p in experts and value.shape == p.shape
                found[f"optimizer.{name}.{key}"] = _part(value, mesh) if cut else value
    return found


def make_room_(
    model: nn.Module, optimizers: Sequence[Optimizer], saved: dict[str, torch.Size]
) -> None:
    """Give new optimizers, which have no state yet, zeros where the saved fits in.

    Args:
        saved: the sizes of everything in the checkpoint, by name.
    """
    names = {p: f"optimizer.{name}." for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            for name in (n for n in saved if n.startswith(names[p])):
                # A step count is a number, all else is like its parameter.
                room = torch.zeros_like(p.detach()) if saved[name] else torch.zeros(())
                optimizer.state[p][name.removeprefix(names[p])] = room


def _experts(model: nn.Module, mesh: Mesh | None) -> set[Tensor]:
    return set() if mesh is None else set(expert_parameters(model))


def _part(value: Tensor, mesh: Mesh | None) -> Tensor:
    """This rank's experts, as a part of all: copied over dp, cut over ep."""
    assert mesh is not None
    placements = (Replicate(), Shard(0))
    return DTensor.from_local(
        value.detach(), mesh.device_mesh, placements, run_check=False
    )
