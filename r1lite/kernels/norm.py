"""RMSNorm, forward and backward, a row at a time (arXiv 1910.07467).

    r = 1 / sqrt(mean(x^2) + eps),  y = w * x * r
    dx = r * (w * dy - x * r^2 * mean(w * dy * x)),  dw = sum over rows of dy * x * r

The reference reads x three times and writes it twice; the kernel reads it once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.kernels.choose import jit, power_of_two, tl, triton, use_triton

ROWS = 16  # rows of one program in the backward pass: each adds up its part of dw
WARPS = 8  # of it: a row of 8192 numbers and its part of dw fill the registers of 4


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: (..., n), weight: (n,) -> (..., n) in x's dtype, statistics in float32."""
    wide = x.float()
    wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (weight.float() * wide).to(x.dtype)


@jit
def _forward(x, weight, y, rstd, stride, n, eps, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < n
    v = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(v * v) / n + eps)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * n + at, w * v * r, mask=inside)
    tl.store(rstd + row, r)


@jit
def _backward(
    dy, x, weight, rstd, dx, dw, stride, rows, n, ROWS: tl.constexpr, SIZE: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    at = tl.arange(0, SIZE)
    inside = at < n
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for i in range(ROWS):
        row = first + i
        real = inside & (row < rows)
        v = tl.load(x + row * stride + at, mask=real, other=0.0).to(tl.float32)
        g = tl.load(dy + row * n + at, mask=real, other=0.0).to(tl.float32)
        r = tl.load(rstd + row, mask=row < rows, other=0.0)
        wide = v * r
        wg = w * g
        tl.store(dx + row * n + at, r * (wg - wide * tl.sum(wg * wide) / n), mask=real)
        total += g * wide
    # Each program has a row of its own: no atomic sum, the same bits every time.
    tl.store(dw + tl.program_id(0) * n + at, total, mask=inside)


@torch.library.custom_op("r1lite::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, n = x.shape
    y, rstd = x.new_empty(rows, n), x.new_empty(rows, dtype=torch.float32)
    if rows:
        _forward[(rows,)](x, weight, y, rstd, x.stride(0), n, eps, power_of_two(n))
    return y, rstd


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("r1lite::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    rows, n = x.shape
    programs = triton.cdiv(rows, ROWS)
    dx, dw = x.new_empty(rows, n), x.new_empty(programs, n, dtype=torch.float32)
    if rows:
        sizes = (x.stride(0), rows, n, ROWS, power_of_two(n))
        _backward[(programs,)](dy, x, weight, rstd, dx, dw, *sizes, num_warps=WARPS)
    return dx, dw.sum(0).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _gradient(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_rms_norm_backward(dy.contiguous(), *ctx.saved_tensors), None


_rms_norm.register_autograd(_gradient, setup_context=_keep)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: (..., n), weight: (n,) -> (..., n); the kernel or its reference."""
    if not use_triton(x):
        return rms_norm_reference(x, weight, eps)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    return _rms_norm(rows, weight.contiguous(), eps)[0].view(x.shape)
