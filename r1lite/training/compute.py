"""Where and how a run computes: device, precision, recomputation, ranks.

None of it changes what is learnt beyond rounding, so a run may be resumed with
other values; all but the precision, which does.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from r1lite.errors import R1Error
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.parallel.mesh import make_mesh
from r1lite.parallel.pipeline import Schedule
from r1lite.parallel.team import Team
from r1lite.precision.amp import autocast, mixed_precision_
from r1lite.settings import Section

TIMEOUT_S = 600.0


class ComputeConfig(Section):
    """Section `[compute]`.

    `micro_rows` sequences are computed at once (0: a rank's whole part of the
    batch), gradients add up. `keep` says which activations stay until the
    backward pass. Weights are float32 in any precision.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    keep: Literal["all", "selective", "block"] = "all"
    micro_rows: int = 0

    def prepare_(self, model: R1Model) -> None:
        """Set what the blocks keep, and make the model fit for the precision."""
        checkpoint_blocks_(model, "none" if self.keep == "all" else self.keep)
        if self.precision != "float32":
            mixed_precision_(model)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return autocast(device.type, getattr(torch, self.precision))


class ParallelConfig(Section):
    """Section `[parallel]`: the layout of torchrun's processes.

    `ep` ranks share one set of experts, `pp` stages share the layers, `dp`
    copies of that read different rows (0: as many as there are ranks for). Stages
    and their `schedule` are for pretraining, with `micro_batches` in flight; what
    follows, with its sampling, lays their ranks out as data parallel.
    With `fsdp` everything that is not an expert is cut over all ranks, too.
    With `node_size`, the ranks of one machine, a token crosses to another one once
    for all of its experts there.
    """

    dp: int = 0
    ep: int = 1
    pp: int = 1
    fsdp: bool = False
    node_size: int = 0
    schedule: Schedule = "1f1b"
    micro_batches: int = 4


def open_team(parallel: ParallelConfig, compute: ComputeConfig) -> Team:
    """The ranks that torchrun started, or this one process alone.

    Raises:
        R1Error: the layout does not fit the ranks, or there is no such device.
    """
    device = _device(compute.device)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = max(1, parallel.dp) * parallel.ep * parallel.pp
    if "RANK" not in os.environ:
        if wanted > 1:
            raise R1Error(
                f"parallel: the layout needs {wanted} processes, this is one; start "
                f"it with torchrun --nproc-per-node={wanted} -m r1lite run …"
            )
        return Team(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join("nccl" if device.type == "cuda" else "gloo")
    if parallel.dp and wanted != ranks:
        raise R1Error(
            f"parallel: dp {parallel.dp} x ep {parallel.ep} x pp {parallel.pp} is "
            f"{wanted}, torchrun started {ranks}; set --nproc-per-node={wanted}"
        )
    flat = make_mesh(parallel.ep, device=device.type, timeout_s=TIMEOUT_S)
    rest = parallel.fsdp, parallel.node_size
    staged = None
    if parallel.pp > 1:
        mesh = make_mesh(
            parallel.ep, pp=parallel.pp, device=device.type, timeout_s=TIMEOUT_S
        )
        staged = Team(device, mesh, *rest)
    return Team(device, flat, *rest, staged)


def _join(backend: str) -> None:
    """Form the group of all ranks.

    torchrun keeps its store when it starts the ranks again (--max-restarts). What
    the dead ones left there, their addresses above all, must not be found: each
    attempt has names of its own.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, ranks = next(rendezvous("env://"))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=TIMEOUT_S),
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise R1Error(
            "compute.device: this torch sees no CUDA device; set it to cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
