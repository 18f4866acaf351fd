"""Grouped GEMM: every expert multiplies its own rows, in one launch.

    y_r = x_r W_e^T  for the rows r of expert e
    dx_r = dy_r W_e,  dW_e = sum over the rows of e of dy_r^T x_r

Rows are sorted by expert and never padded. A program finds its expert from the
counts on the device, so the host never waits to learn how many tokens went where;
an expert without tokens costs nothing forward, and a zero gradient backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import jit, power_of_two, tl, triton, use_triton

ROWS, COLUMNS, DEPTH = 64, 64, 32  # one tile
STAGES = 3  # tiles in flight


def grouped_reference(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """What `grouped_mm` computes, expert by expert."""
    parts = rows.split(counts.tolist())
    done = [F.linear(x, w) for x, w in zip(parts, weight.unbind(), strict=True)]
    return torch.cat(done) if done else rows.new_zeros(0, weight.shape[1])


@jit
def _product(
    x, weight, y, counts, experts, n, k,
    x_row, w_expert, w_n, w_k, y_row,
    E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One tile (M, N) of y = x W^T, with the strides of W given: W or its transpose."""
    tile = tl.program_id(0)
    every = tl.arange(0, E)
    size = tl.load(counts + every, mask=every < experts, other=0)
    tiles = (size + M - 1) // M
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if expert < experts:
        before = every < expert
        start = tl.sum(tl.where(before, size, 0), 0).to(tl.int64)
        length = tl.sum(tl.where(every == expert, size, 0), 0)
        within = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * M + tl.arange(0, M)
        here = start + within
        real = within < length
        column = tl.program_id(1) * N + tl.arange(0, N)
        base = weight + expert.to(tl.int64) * w_expert + column[None, :] * w_n
        acc = tl.zeros((M, N), tl.float32)
        for first in range(0, k, K):
            at = first + tl.arange(0, K)
            a = tl.load(
                x + here[:, None] * x_row + at[None, :],
                mask=real[:, None] & (at < k)[None, :],
                other=0.0,
            )
            b = tl.load(
                base + at[:, None] * w_k,
                mask=(at < k)[:, None] & (column < n)[None, :],
                other=0.0,
            )
            acc += tl.dot(a, b, input_precision="ieee")
        target = y + here[:, None] * y_row + column[None, :]
        tl.store(target, acc, mask=real[:, None] & (column < n)[None, :])


@jit
def _weight_gradient(
    dy, x, dw, counts, n, k, dy_row, x_row,
    E: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One tile (N, K) of one expert's dW, over its rows in their order."""
    expert = tl.program_id(0)
    every = tl.arange(0, E)
    size = tl.load(counts + every, mask=every < tl.num_programs(0), other=0)
    start = tl.sum(tl.where(every < expert, size, 0), 0).to(tl.int64)
    length = tl.sum(tl.where(every == expert, size, 0), 0)
    row = tl.program_id(1) * N + tl.arange(0, N)
    column = tl.program_id(2) * K + tl.arange(0, K)
    acc = tl.zeros((N, K), tl.float32)
    for first in range(0, length, M):
        within = first + tl.arange(0, M)
        here, real = start + within, within < length
        a = tl.load(
            dy + here[:, None] * dy_row + row[None, :],
            mask=real[:, None] & (row < n)[None, :],
            other=0.0,
        )
        b = tl.load(
            x + here[:, None] * x_row + column[None, :],
            mask=real[:, None] & (column < k)[None, :],
            other=0.0,
        )
        acc += tl.dot(tl.trans(a), b, input_precision="ieee")
    target = dw + expert.to(tl.int64) * n * k + row[:, None] * k + column[None, :]
    tl.store(target, acc, mask=(row < n)[:, None] & (column < k)[None, :])


def _multiply(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """x (rows, k), weight (experts, n, k) of any strides -> (rows, n)."""
    experts, n, k = weight.shape
    y = x.new_empty(len(x), n)
    # As many tiles as the rows can need however they are spread: a last, partly
    # filled one for each expert. Those too many find no expert and end.
    grid = triton.cdiv(len(x), ROWS) + experts, triton.cdiv(n, COLUMNS)
    if y.numel():
        _product[grid](
            *(x, weight, y, counts, experts, n, k),
            *(x.stride(0), *weight.stride(), y.stride(0)),
            *(power_of_two(experts), ROWS, COLUMNS, DEPTH),
            num_stages=STAGES,
        )
    return y


@torch.library.custom_op("r1lite::grouped_mm", mutates_args=())
def _grouped_mm(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return _multiply(rows, weight, counts)


@_grouped_mm.register_fake
def _(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[1])


@torch.library.custom_op("r1lite::grouped_mm_backward", mutates_args=())
def _grouped_mm_backward(
    dy: Tensor, rows: Tensor, weight: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    experts, n, k = weight.shape
    dx = _multiply(dy, weight.transpose(1, 2), counts)
    dw = weight.new_empty(experts, n, k)
    grid = experts, triton.cdiv(n, COLUMNS), triton.cdiv(k, COLUMNS)
    if dw.numel():
        _weight_gradient[grid](
            *(dy, rows, dw, counts, n, k, dy.stride(0), rows.stride(0)),
            *(power_of_two(experts), DEPTH, COLUMNS, COLUMNS),
            num_stages=STAGES,
        )
    return dx, dw


@_grouped_mm_backward.register_fake
def _(
    dy: Tensor, rows: Tensor, weight: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_grouped_mm_backward(dy.contiguous(), *ctx.saved_tensors), None


_grouped_mm.register_autograd(_gradient, setup_context=_keep)


def grouped_mm(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Each expert's rows times its weights.

    Args:
        rows: (N, k), the first counts[0] rows for expert 0, and so on.
        weight: (experts, n, k), as `nn.Linear` has it for each expert.
        counts: (experts,) int64, sums to N.

    Returns:
        (N, n), in the same order.

    Raises:
        R1Error: shapes that do not fit.
    """
    if rows.shape[1:] != weight.shape[2:] or counts.shape != weight.shape[:1]:
        raise R1Error(
            f"grouped_mm: rows {tuple(rows.shape)}, weight {tuple(weight.shape)} and "
            f"counts {tuple(counts.shape)}; give (N, k), (experts, n, k), (experts,)"
        )
    if not use_triton(rows):
        return grouped_reference(rows, weight, counts)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    result: Tensor = _grouped_mm(rows, weight, counts.contiguous())
    return result
