"""What a rank really sends, counted where torch is called."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import torch.distributed as dist
from torch import Tensor


@dataclass
class Sent:
    """What this rank's all-to-alls send to other ranks inside the `with`.

    Rows of tokens are those `hidden` wide; all else describes them.
    """

    hidden: int
    node_size: int
    rows_across: int = 0
    rows_inside: int = 0
    other_bytes: int = 0

    def __enter__(self) -> Sent:
        self._real = dist.all_to_all_single
        self._patch = mock.patch.object(dist, "all_to_all_single", self._count)
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _count(self, out: Tensor, given: Tensor, *sizes: object, group: object) -> None:
        ranks = dist.get_process_group_ranks(group)
        send = sizes[1] if sizes else [len(given) // len(ranks)] * len(ranks)
        me = dist.get_rank()
        for n, rank in zip(send, ranks, strict=True):
            if rank == me:
                continue
            if given.dim() != 2 or given.shape[1] != self.hidden:
                self.other_bytes += n * given.element_size() * given[:1].numel()
            elif rank // self.node_size == me // self.node_size:
                self.rows_inside += n
            else:
                self.rows_across += n
        self._real(out, given, *sizes, group=group)


def total(*numbers: int) -> list[int]:
    """The sums over all ranks."""
    found: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, list(numbers))
    return [sum(column) for column in zip(*found, strict=True)]
