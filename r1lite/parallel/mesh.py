"""The mesh: which ranks share experts, and which ranks repeat each other.

Ranks are numbered dp * ep + e, so the ranks of one expert-parallel group are
neighbours: their all-to-all stays within a machine where it can (V3, arXiv
2412.19437, section 3.2: 64-way expert parallelism over 8 machines, data
parallelism beside it).

    dp 2, ep 2      ep ->
                dp   0  1      experts are cut up along a row,
                |    2  3      copies of a cut stand in a column
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from r1lite.errors import R1Error
from r1lite.parallel import shard


@dataclass(frozen=True)
class Mesh:
    """The three groups that one rank belongs to.

    Attributes:
        device_mesh: the DeviceMesh with dimensions ("dp", "ep").
        world: every rank; each reads its own rows of the batch.
        dp: the ranks that hold the same experts as this one.
        ep: the ranks that hold all experts together.
    """

    device_mesh: DeviceMesh
    world: dist.ProcessGroup
    dp: dist.ProcessGroup
    ep: dist.ProcessGroup

    @property
    def size(self) -> tuple[int, int]:
        """(dp, ep)."""
        return dist.get_world_size(self.dp), dist.get_world_size(self.ep)

    def world_mesh(self) -> DeviceMesh:
        """All ranks in a row, for what is cut over every one of them."""
        return DeviceMesh.from_group(self.world, self.device_mesh.device_type)

    def rows(self, batch: Tensor) -> Tensor:
        """This rank's part of a global batch, (rows / ranks, ...).

        Raises:
            R1Error: the rows do not divide among the ranks.
        """
        ranks = dist.get_world_size(self.world)
        if len(batch) % ranks:
            raise R1Error(
                f"batch: {len(batch)} rows do not divide among {ranks} ranks; "
                "choose a multiple"
            )
        return batch.chunk(ranks)[dist.get_rank(self.world)]


def make_mesh(
    ep: int, dp: int | None = None, device: str = "cpu", timeout_s: float = 600.0
) -> Mesh:
    """Lay the ranks of this run out as dp x ep. Every rank has to call it.

    Args:
        ep: ranks that share one set of experts.
        dp: copies of that set; by default as many as there are ranks for.
        device: "cpu" (gloo) or "cuda" (NCCL).
        timeout_s: how long a group waits for a rank. Give the same to
            `init_process_group`: new groups do not inherit it, torch gives them
            30 minutes on gloo.

    Raises:
        R1Error: no process group, or dp * ep is not the number of ranks.
    """
    if not dist.is_initialized():
        raise R1Error(
            "mesh: this process belongs to no group; start it with torchrun and "
            "call torch.distributed.init_process_group first"
        )
    ranks = dist.get_world_size()
    if ep < 1 or ranks % ep:
        raise R1Error(f"ep: {ep} does not divide {ranks} ranks; choose a divisor")
    dp = ranks // ep if dp is None else dp
    if dp * ep != ranks:
        raise R1Error(
            f"dp: {dp} times ep {ep} is not {ranks} ranks; set dp to {ranks // ep} "
            f"or start {dp * ep} processes"
        )
    ids, timeout = torch.arange(ranks).view(dp, ep), timedelta(seconds=timeout_s)
    columns, _ = dist.new_subgroups_by_enumeration(ids.T.tolist(), timeout=timeout)
    rows, _ = dist.new_subgroups_by_enumeration(ids.tolist(), timeout=timeout)
    mesh = DeviceMesh.from_group(
        [columns, rows], device, mesh=ids, mesh_dim_names=("dp", "ep")
    )
    world = dist.group.WORLD
    assert world is not None
    return Mesh(mesh, world, columns, rows)


def finish_backward_(model: nn.Module, mesh: Mesh, clip: float = math.inf) -> Tensor:
    """What lies between `backward` and the optimizer, once a step.

    Gradients and expert counts become those of the global batch, then the
    gradient is clipped to norm `clip`, with one norm for all ranks.

    Returns:
        () float64: the norm before clipping, alike on every rank. If it is not
        finite nothing was clipped, and the optimizer must not step.
    """
    shard.add_gradients_(model, mesh.world, mesh.dp)
    shard.add_counts_(model, mesh.world)
    norm = shard.gradient_norm(model, mesh.ep)
    if norm > clip:
        scale = clip / float(norm)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(scale)
    return norm
