"""Prints the layout of 2 x 2 meshes and every refusal; run under torchrun."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from r1lite.errors import R1Error
from r1lite.parallel import mesh as mesh_module
from r1lite.parallel.mesh import Mesh, finish_backward_, make_mesh


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except R1Error as error:
        if dist.get_rank() == 0:
            print("refused:", error, flush=True)
    else:
        raise AssertionError("was accepted")


def nobody_leaves_before_all_have_met() -> None:
    """Rank 3 is late to notice that its groups are complete; the others wait."""
    make, met = mesh_module._mine, [0.0]

    def slowly(*given: Any) -> Any:
        found = make(*given)
        time.sleep(0.3 * (dist.get_rank() == 3))
        met[0] = time.time()
        return found

    mesh_module._mine = slowly
    make_mesh(ep=2)
    times: list[Any] = [None] * 4
    dist.all_gather_object(times, (met[0], time.time()))
    assert max(at for at, _ in times) <= min(left for _, left in times), times


def an_infinite_norm_clips_nothing(mesh: Mesh) -> None:
    """`inf * 0` would make the gradient NaN, and its cause hard to find."""
    model = torch.nn.Linear(2, 1, bias=False)
    for slope, kept in ((math.inf, 4.0), (math.nan, 4.0), (3.0, 0.8)):
        model.weight.grad = torch.tensor([[slope, 1.0]])  # on each of four ranks
        norm = finish_backward_(model, mesh, clip=math.sqrt(10) * 0.8)
        assert math.isfinite(norm) == math.isfinite(slope), norm
        assert abs(float(model.weight.grad[0, 1]) - kept) < 1e-6, model.weight.grad


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = make_mesh(ep=2)
    ep, dp = (dist.get_process_group_ranks(g) for g in (mesh.ep, mesh.dp))
    rows = mesh.rows(torch.arange(4)).tolist()
    line = f"rank {dist.get_rank()} of {mesh.size}: ep {ep}, dp {dp}, rows {rows}\n"
    print(line, end="", flush=True)
    mesh = make_mesh(ep=1, pp=2)
    dp, pp = (dist.get_process_group_ranks(g) for g in (mesh.dp, mesh.pp))
    rows = mesh.rows(torch.arange(4)).tolist()
    assert mesh.device_mesh.mesh.flatten().tolist() == dp
    assert mesh.ends is not None
    assert dist.get_process_group_ranks(mesh.ends) == pp
    line = f"rank {dist.get_rank()} of stage {dist.get_rank(mesh.pp)} of {mesh.stages}:"
    print(f"{line} dp {dp}, pp {pp}, rows {rows}\n", end="", flush=True)
    line = make_mesh(ep=1, pp=4)
    assert line.size == (1, 1)
    assert (line.ends is not None) == (dist.get_rank() in (0, 3))
    for sizes in (
        {"ep": 3},
        {"ep": 0},
        {"ep": 2, "dp": 3},
        {"ep": 1, "pp": 3},
        {"ep": 4, "pp": 2},
        {"ep": 2, "dp": 2, "pp": 2},
    ):
        refused(lambda sizes=sizes: make_mesh(**sizes))
    mesh = make_mesh(ep=2)
    refused(lambda: mesh.rows(torch.arange(6)))
    an_infinite_norm_clips_nothing(mesh)
    nobody_leaves_before_all_have_met()
    dist.destroy_process_group()
