"""What the ranks of test_ranks.py do."""

from __future__ import annotations

import os
import time

import torch.distributed as dist


def double(rank: int, values: list[int]) -> int:
    time.sleep(0.2 * (rank == 0))  # the last to answer, the first in the list
    return 2 * values[rank]


def die(rank: int) -> int:
    if rank == 0:
        os._exit(1)
    return rank


def stumble(rank: int) -> None:
    """Rank 1 raises; the others wait for it, or are busy for long."""
    if rank == 1:
        raise ValueError("the mistake")
    if rank == 2:
        time.sleep(60)
    dist.barrier()
