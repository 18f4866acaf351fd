"""All-to-all with a gradient: every rank sends each other rank its own rows.

The backward pass of an exchange is the exchange in the other direction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange(
    rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
) -> Tensor:
    """Send `send[r]` consecutive rows to each rank r, get `receive[r]` from it.

    Args:
        rows: (sum(send), width), ordered by destination.

    Returns:
        (sum(receive), width), ordered by the rank that sent them. Zero rows to
        or from a rank are fine: the call is collective, so it is never skipped.
    """
    result: Tensor = _Exchange.apply(rows, send, receive, group)
    return result


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What every rank is about to send here.

    Args:
        counts: (ranks, n) int64, row r for rank r.

    Returns:
        (ranks, n) int64, row r from rank r.
    """
    found = torch.empty_like(counts)
    with _timed():
        dist.all_to_all_single(found, counts.contiguous(), group=group)
    return found


def seconds_exchanging() -> float:
    """Time that this process has spent in exchanges so far, most of it waiting.

    On a GPU they return at once and are waited for later, which is not counted.
    """
    return _seconds


_seconds = 0.0


@contextmanager
def _timed() -> Iterator[None]:
    global _seconds
    began = time.perf_counter()
    yield
    _seconds += time.perf_counter() - began


class _Exchange(torch.autograd.Function):
    """`exchange`, and its reverse for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        send: list[int],
        receive: list[int],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _move(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _move(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _move(
    rows: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
) -> Tensor:
    found = rows.new_empty(sum(receive), *rows.shape[1:])
    with _timed():
        dist.all_to_all_single(found, rows.contiguous(), receive, send, group=group)
    return found
