"""The mesh: which ranks share experts, which repeat each other, which take turns.

Ranks are numbered (stage * dp + d) * ep + e, so the ranks of one expert-parallel
group are neighbours: their all-to-all stays within a machine where it can (V3,
arXiv 2412.19437, section 3.2: 64-way expert parallelism over 8 machines, data
parallelism beside it, 16 pipeline stages). What passes from stage to stage is
little, so that way may be the longest::

    dp 2, ep 2      ep ->                 pp 2: stage 0  0  1    stage 1  4  5
                dp   0  1      experts are cut up along   2  3             6  7
                |    2  3      a row, copies of a cut
                               stand in a column
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
from r1lite.parallel import cut, shard


@dataclass(frozen=True)
class Mesh:
    """The groups that one rank belongs to.

    Attributes:
        device_mesh: the DeviceMesh of this rank's stage, with dimensions
            ("dp", "ep").
        world: the ranks of this rank's stage, all ranks where there is but one;
            each reads its own rows of the batch.
        dp: the ranks that hold the same experts as this one.
        ep: the ranks that hold all experts together.
        pp: the ranks that hold all layers together, one of each stage.
        ends: the first and the last of `pp`; None for others and without stages.
    """

    device_mesh: DeviceMesh
    world: dist.ProcessGroup
    dp: dist.ProcessGroup
    ep: dist.ProcessGroup
    pp: dist.ProcessGroup
    ends: dist.ProcessGroup | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(dp, ep), the size of a stage."""
        return dist.get_world_size(self.dp), dist.get_world_size(self.ep)

    @property
    def stages(self) -> int:
        """Into how many ranks the layers are cut, 1 for all on each."""
        return dist.get_world_size(self.pp)

    def world_mesh(self) -> DeviceMesh:
        """The stage's ranks in a row, for what is cut over every one of them."""
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
    ep: int,
    dp: int | None = None,
    device: str = "cpu",
    timeout_s: float = 600.0,
    pp: int = 1,
) -> Mesh:
    """Lay the ranks of this run out as pp x dp x ep. Every rank has to call it.

    It returns when every rank has all its groups.

    Args:
        ep: ranks that share one set of experts.
        dp: copies of that set; by default as many as there are ranks for.
        device: "cpu" (gloo) or "cuda" (NCCL).
        timeout_s: how long a group waits for a rank. Give the same to
            `init_process_group`: new groups do not inherit it, torch gives them
            30 minutes on gloo.
        pp: pipeline stages, of dp x ep ranks each.

    Raises:
        R1Error: no process group, or pp * dp * ep is not the number of ranks.
    """
    if not dist.is_initialized():
        raise R1Error(
            "mesh: this process belongs to no group; start it with torchrun and "
            "call torch.distributed.init_process_group first"
        )
    ids, timeout = _ids(ep, dp, pp), timedelta(seconds=timeout_s)
    columns = _mine(ids.transpose(1, 2).flatten(0, 1), timeout)
    rows = _mine(ids.flatten(0, 1), timeout)
    pipes = ids.flatten(1).T
    pipe = _mine(pipes, timeout)
    assert columns and rows and pipe and dist.group.WORLD
    world, ends = dist.group.WORLD, None
    if pp > 1:
        stage = _mine(ids.flatten(1), timeout)
        assert stage
        world, ends = stage, _mine(pipes[:, [0, -1]], timeout)
    mesh = DeviceMesh.from_group(
        [columns, rows],
        device,
        mesh=ids[dist.get_rank(pipe)],
        mesh_dim_names=("dp", "ep"),
    )
    # A rank with little to do must not be gone before the others have met it.
    dist.barrier()
    return Mesh(mesh, world, columns, rows, pipe, ends)


def _ids(ep: int, dp: int | None, pp: int) -> Tensor:
    """The ranks in their places, (pp, dp, ep) int64."""
    ranks = dist.get_world_size()
    if pp < 1 or ranks % pp:
        raise R1Error(f"pp: {pp} does not divide {ranks} ranks; choose a divisor")
    per_stage = ranks // pp
    of = f"{per_stage} ranks" + (f" of each of {pp} stages" if pp > 1 else "")
    if ep < 1 or per_stage % ep:
        raise R1Error(f"ep: {ep} does not divide {of}; choose a divisor")
    dp = per_stage // ep if dp is None else dp
    if dp * ep != per_stage:
        raise R1Error(
            f"dp: {dp} times ep {ep} is not {of}; set dp to {per_stage // ep} "
            f"or start {pp * dp * ep} processes"
        )
    return torch.arange(ranks).view(pp, dp, ep)


def _mine(groups: Tensor, timeout: timedelta) -> dist.ProcessGroup | None:
    """Make a group of each row; the one that this rank is in, if it is in one."""
    mine, _ = dist.new_subgroups_by_enumeration(groups.tolist(), timeout=timeout)
    return mine


def finish_backward_(model: nn.Module, mesh: Mesh, clip: float = math.inf) -> Tensor:
    """What lies between `backward` and the optimizer, once a step.

    Gradients and expert counts become those of the global batch, then the
    gradient is clipped to norm `clip`, with one norm for all ranks.

    Returns:
        () float64: the norm before clipping, alike on every rank. If it is not
        finite nothing was clipped, and the optimizer must not step.
    """
    shard.add_gradients_(model, mesh.world, mesh.dp)
    if mesh.ends is not None:
        cut.add_twins_(model, mesh.ends)
    shard.add_counts_(model, mesh.world)
    norm = _norm(model, mesh)
    if clip < norm < math.inf:
        scale = clip / float(norm)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(scale)
    return norm


def _norm(model: nn.Module, mesh: Mesh) -> Tensor:
    """Norm of the gradient over all stages; what two of them hold counts once."""
    repeated = cut.twins(model) if dist.get_rank(mesh.pp) else []
    squares = shard.gradient_norm(model, mesh.ep, repeated).square()
    if mesh.stages > 1:
        dist.all_reduce(squares, group=mesh.pp)
    return squares.sqrt()
