"""Prints the layout of a 2 x 2 mesh and every refusal; run under torchrun."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from r1lite.errors import R1Error
from r1lite.parallel.mesh import make_mesh


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except R1Error as error:
        if dist.get_rank() == 0:
            print("refused:", error, flush=True)
    else:
        raise AssertionError("was accepted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = make_mesh(ep=2)
    ep, dp = (dist.get_process_group_ranks(g) for g in (mesh.ep, mesh.dp))
    rows = mesh.rows(torch.arange(4)).tolist()
    line = f"rank {dist.get_rank()} of {mesh.size}: ep {ep}, dp {dp}, rows {rows}\n"
    print(line, end="", flush=True)
    for sizes in ({"ep": 3}, {"ep": 0}, {"ep": 2, "dp": 3}):
        refused(lambda sizes=sizes: make_mesh(**sizes))
    refused(lambda: mesh.rows(torch.arange(6)))
    dist.destroy_process_group()
