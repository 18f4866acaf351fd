"""Rotary positions, forward and backward (arXiv 2104.09864), as R1's MLA turns them.

    (a, b) -> (a c - b s, b c + a s),  and back with -s

Interleaved pairs are neighbours and are written in halves, as in
`r1lite.attention.rope.rotate`: the reference makes four strided tensors for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.attention.rope import rotate
from r1lite.kernels.choose import jit, power_of_two, tl, use_triton


@jit
def _turn(
    x, y, cos, sin, x_row, x_head, y_row, y_head, rows, half,
    ALONG: tl.constexpr, APART: tl.constexpr, OUT: tl.constexpr, BACK: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """One head of one token. The members of a pair are read APART from each other,
    pairs ALONG from each other; they are written OUT from each other."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < half
    place = token % rows  # angles of a sequence serve every row of the batch
    c = tl.load(cos + place * half + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + place * half + at, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    source = x + token * x_row + head * x_head
    a = tl.load(source + at * ALONG, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + at * ALONG + APART, mask=inside, other=0.0).to(tl.float32)
    target = y + token * y_row + head * y_head
    step = 2 if BACK and OUT == 1 else 1  # neighbours again
    tl.store(target + at * step, a * c - b * s, mask=inside)
    tl.store(target + at * step + OUT, b * c + a * s, mask=inside)


def _launch(
    x: Tensor, cos: Tensor, sin: Tensor, interleave: bool, back: bool
) -> Tensor:
    tokens, heads, width = x.shape
    y, half = x.new_empty(x.shape), width // 2
    neighbours = (2, 1) if interleave else (1, half)  # how the model has them
    read = (1, half) if back else neighbours
    write = neighbours[1] if back else half
    if y.numel():
        _turn[tokens, heads](
            *(x, y, cos, sin, *x.stride()[:2], *y.stride()[:2]),
            *(len(cos), half, *read, write, back, power_of_two(half)),
        )
    return y


@torch.library.custom_op("r1lite::rope", mutates_args=())
def _rope(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool, back: bool) -> Tensor:
    return _launch(x, cos, sin, interleave, back)


@_rope.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.interleave, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rope(dy.contiguous(), cos, sin, ctx.interleave, not ctx.back), *[None] * 4


_rope.register_autograd(_gradient, setup_context=_keep)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """Turn every head of every token by its position's angles.

    Args:
        x: (batch, seq, heads, width), width even, of any strides but the last.
        cos, sin: (batch or 1, seq, width / 2), as `Rope` gives them.

    Returns:
        (batch, seq, heads, width), pairs in halves. Angles have no gradient.
    """
    if not use_triton(x):
        return rotate(x, cos.unsqueeze(-2), sin.unsqueeze(-2), interleave)
    x = x if x.stride(-1) == 1 else x.contiguous()
    flat = x.flatten(0, 1)
    angles = [a.reshape(-1, a.shape[-1]).contiguous() for a in (cos, sin)]
    result: Tensor = _rope(flat, *angles, interleave, False)
    return result.view(x.shape)
