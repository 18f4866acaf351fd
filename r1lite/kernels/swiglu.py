"""SwiGLU's middle: silu(gate) * up, forward and backward (arXiv 2002.05202).

    y = g * s * u,  s = sigmoid(g)
    du = dy * g * s,  dg = dy * u * s * (1 + g * (1 - s))

Nothing but the two inputs is kept for the backward pass: silu(g), which autograd
would keep as well, is made again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.kernels.choose import jit, tl, triton, use_triton

BLOCK = 1024


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: (..., n) -> (..., n)."""
    return F.silu(gate) * up


@jit
def _forward(gate, up, y, n, gate_stride, up_stride, width, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    row, column = at // width, at % width
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    g = g.to(tl.float32)
    tl.store(y + at, g * tl.sigmoid(g) * u.to(tl.float32), mask=inside)


@jit
def _backward(
    dy, gate, up, dgate, dup, n, gate_stride, up_stride, width, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    row, column = at // width, at % width
    g = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    u = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    d = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    g = g.to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(dup + at, d * g * s, mask=inside)
    slope = s * (1.0 + g * (1.0 - s))
    tl.store(dgate + at, d * u.to(tl.float32) * slope, mask=inside)


@torch.library.custom_op("r1lite::swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    y = gate.new_empty(gate.shape)
    if y.numel():
        sizes = (y.numel(), gate.stride(0), up.stride(0), y.shape[1], BLOCK)
        _forward[(triton.cdiv(y.numel(), BLOCK),)](gate, up, y, *sizes)
    return y


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("r1lite::swiglu_backward", mutates_args=())
def _swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    if dy.numel():
        sizes = (dy.numel(), gate.stride(0), up.stride(0), dy.shape[1], BLOCK)
        grid = (triton.cdiv(dy.numel(), BLOCK),)
        _backward[grid](dy, gate, up, dgate, dup, *sizes)
    return dgate, dup


@_swiglu_backward.register_fake
def _(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _swiglu_backward(
        dy.contiguous(), *ctx.saved_tensors
    )
    return result


_swiglu.register_autograd(_gradient, setup_context=_keep)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: (..., n) -> silu(gate) * up, (..., n).

    Halves of one product, as `chunk` gives them, are read where they lie.
    """
    if not use_triton(gate):
        return swiglu_reference(gate, up)
    flat = [x.reshape(-1, x.shape[-1]) for x in (gate, up)]
    flat = [x if x.stride(-1) == 1 else x.contiguous() for x in flat]
    result: Tensor = _swiglu(*flat)
    return result.view(gate.shape)
