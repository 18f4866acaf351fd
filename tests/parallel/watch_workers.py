"""A slow rank, a bug, one that hangs or dies; run under torchrun by test_watch.py."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from r1lite.errors import R1Error
from r1lite.parallel.exchange import exchange, exchange_counts
from r1lite.parallel.mesh import Mesh, make_mesh
from r1lite.parallel.watch import Watch, slow_ranks

WAIT, WORK = 2.0, 0.2


def steps(watch: Watch, group: dist.ProcessGroup, slow: int) -> None:
    """Three steps; rank `slow` works three times as long."""
    watch.lap()
    began = time.perf_counter()
    for _ in range(3):
        time.sleep(WORK * (3 if dist.get_rank() == slow else 1))
        with watch("gradients"):
            dist.all_reduce(torch.ones(3), group=group)
    whole = time.perf_counter() - began
    found = slow_ranks(watch.lap(), group)
    by_whole_step = slow_ranks(whole, group)
    assert list(found) == ([slow] if slow >= 0 else []), found
    assert slow < 0 or 1.5 < found[slow] < 4.5, found
    assert not by_whole_step, by_whole_step  # everyone waits for the slow one


def exchanges(watch: Watch, mesh: Mesh) -> None:
    """Two steps with an all-to-all in both passes; rank 1 works three times as long."""
    rows, ranks = torch.ones(2, 3, requires_grad=True), [1, 1]
    watch.lap()
    for _ in range(2):
        time.sleep(WORK * (3 if dist.get_rank() == 1 else 1))
        counts = exchange_counts(torch.ones(2, 1, dtype=torch.int64), mesh.ep)
        assert counts.tolist() == [[1], [1]]
        found = exchange(rows, ranks, ranks, mesh.ep)
        time.sleep(WORK * (3 if dist.get_rank() == 1 else 1))
        found.sum().backward()
    with watch("counts"):  # what waits twice is left out once
        dist.barrier()
        exchange_counts(torch.ones(2, 1, dtype=torch.int64), mesh.ep)
    own = watch.lap()
    assert own > 2 * WORK, own
    found = slow_ranks(own, mesh.world)
    assert list(found) == [1], found
    assert 1.5 < found[1] < 4.5, found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=WAIT))
    if sys.argv[1] == "exchanges":
        exchanges(Watch(), make_mesh(ep=2))
        print("the slow rank was seen\n", end="", flush=True)
        os._exit(0)
    mesh = make_mesh(ep=1, timeout_s=WAIT)
    rank, watch = dist.get_rank(), Watch()
    if sys.argv[1] == "hangs":
        steps(watch, mesh.dp, slow=-1)
        steps(watch, mesh.dp, slow=1)
        print(f"rank {rank} saw the slow rank\n", end="", flush=True)
    try:
        with watch("a bug"):
            torch.ones(2) @ torch.ones(3)
    except RuntimeError as error:
        assert "size" in str(error)  # a bug keeps its own words
    with watch("step 7: forward"):
        if rank == 1:  # and never gets to the gradients
            time.sleep(2 * WAIT if sys.argv[1] == "hangs" else 0)
            os._exit(0)
    try:
        with watch("step 7: gradients"):
            dist.all_reduce(torch.ones(3), group=mesh.dp)
    except R1Error as error:
        print(error, flush=True)
    os._exit(0)
