"""Products with a weight of whole numbers: int8 and int4, a scale a row or a group.

    y_rj = sum over groups g of s_jg (sum over k in g of x_rk q_jk - z_jg sum of x_rk)

The layout is that of `r1lite.quantization`: (out, in) codes; two 4-bit ones in a byte,
the even input in its low half; without zero points 4-bit codes are shifted by 8.

Whole numbers up to 256 are exact in bfloat16 and float16. So codes are multiplied as
they are, scales and zero points follow in float32, and a weight is never rounded. A
single row (a GEMV) needs no matrix unit: it waits for memory, which holds a half or
a quarter of a bfloat16 weight's bytes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import Tile, jit, power_of_two, tl, triton, use_triton

FEW, MANY = Tile(16, 64, 4), Tile(64, 64, 8)  # rows x outputs of one program
DEPTH = 64  # inputs at a time, at most
ONE, WIDE = 4, 1024  # for a single row: outputs of one program, inputs at a time


def dequant_mm_reference(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> Tensor:
    """What `dequant_mm` computes: the weight restored, then one product."""
    return F.linear(x, _restored(x, codes, scales, zeros).to(x.dtype))


def _restored(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """(out, in) float32."""
    q = codes
    if _packed(x, codes):
        q = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    q = q.float()
    if zeros is None and _packed(x, codes):
        q = q - 8
    q = q.unflatten(-1, (scales.shape[-1], -1))
    if zeros is not None:
        q = q - zeros.float().unsqueeze(-1)
    return (q * scales.float().unsqueeze(-1)).flatten(-2)


def _packed(x: Tensor, codes: Tensor) -> bool:
    """Are there two codes in a byte?"""
    return codes.shape[-1] != x.shape[-1]


@jit
def _many(
    x, codes, scales, zeros, y, rows, n, groups, group,
    x_row, c_row, s_row, y_row,
    PACKED: tl.constexpr, ZEROS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One tile (M, N) of y, at most K inputs of one group at a time."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    real, exists = row < rows, column < n
    wide = column.to(tl.int64)
    x_at = x + row.to(tl.int64)[:, None] * x_row
    w_at = codes + wide[:, None] * c_row
    acc = tl.zeros((M, N), tl.float32)
    steps = tl.cdiv(group, K)
    for step in range(0, groups * steps):
        mine = step // steps
        first, last = mine * group + step % steps * K, (mine + 1) * group
        at = first + tl.arange(0, K)
        inside = real[:, None] & (at < last)[None, :]
        left = tl.load(x_at + at[None, :], mask=inside, other=0.0)
        if PACKED:
            at = first // 2 + tl.arange(0, K // 2)
            inside = (2 * at < last)[None, :] & exists[:, None]
        else:
            inside = (at < last)[None, :] & exists[:, None]
        q = tl.load(w_at + at[None, :], mask=inside, other=0)
        if PACKED:
            q = tl.interleave(q & 15, q >> 4).to(tl.int8)
            if not ZEROS:
                q -= 8
        part = tl.dot(left, tl.trans(q.to(left.dtype)), input_precision="ieee")
        if ZEROS:
            z = tl.load(zeros + wide * s_row + mine, mask=exists, other=0.0)
            part -= tl.sum(left.to(tl.float32), 1)[:, None] * z.to(tl.float32)[None, :]
        s = tl.load(scales + wide * s_row + mine, mask=exists, other=0.0)
        acc += part * s.to(tl.float32)[None, :]
    target = y + row.to(tl.int64)[:, None] * y_row + column[None, :]
    tl.store(target, acc, mask=real[:, None] & exists[None, :])


@jit
def _one(
    x, codes, scales, zeros, y, n, groups, group, c_row, s_row,
    PACKED: tl.constexpr, ZEROS: tl.constexpr,
    N: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """N outputs of a single row, G stretches of K inputs at a time.

    Many bytes are asked for at once, and sums over lanes meet only at the end.
    """
    column = tl.program_id(0) * N + tl.arange(0, N)
    exists, wide = column < n, column.to(tl.int64)
    codes += wide[:, None, None] * c_row
    acc = tl.zeros((N, G, K), tl.float32)
    steps = tl.cdiv(group, K)
    for begin in range(0, groups * steps, G):
        step = begin + tl.arange(0, G)
        mine, there = step // steps, step < groups * steps
        first, last = mine * group + step % steps * K, (mine + 1) * group
        at = first[:, None] + tl.arange(0, K)[None, :]
        inside = (at < last[:, None]) & there[:, None]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if PACKED:
            at = (first // 2)[:, None] + tl.arange(0, K // 2)[None, :]
            inside = (2 * at < last[:, None]) & there[:, None]
        asked = inside[None, :, :] & exists[:, None, None]
        q = tl.load(codes + at[None, :, :], mask=asked, other=0)
        if PACKED:
            q = tl.interleave(q & 15, q >> 4)
        q = q.to(tl.float32)
        scale_at, real = wide[:, None] * s_row + mine[None, :], exists[:, None]
        real = real & there[None, :]
        if ZEROS:
            z = tl.load(zeros + scale_at, mask=real, other=0.0)
            q -= z.to(tl.float32)[:, :, None]
        elif PACKED:
            q -= 8.0
        s = tl.load(scales + scale_at, mask=real, other=0.0)
        acc += q * s.to(tl.float32)[:, :, None] * v[None, :, :]
    tl.store(y + column, tl.sum(tl.sum(acc, 2), 1), mask=exists)


@torch.library.custom_op("r1lite::dequant_mm", mutates_args=())
def _dequant_mm(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> Tensor:
    (rows, k), n, groups = x.shape, len(codes), scales.shape[1]
    y = x.new_empty(rows, n)
    given = x, codes, scales, scales if zeros is None else zeros, y
    kinds = _packed(x, codes), zeros is not None
    depth = max(16, min(DEPTH, power_of_two(k // groups)))
    strides = codes.stride(0), scales.stride(0)
    if rows == 1 and n:
        sizes = n, groups, k // groups, *strides, *kinds, ONE, WIDE // depth, depth
        _one[(triton.cdiv(n, ONE),)](*given, *sizes)
    elif y.numel():
        tile = FEW if rows <= FEW.m else MANY
        _many[triton.cdiv(rows, tile.m), triton.cdiv(n, tile.n)](
            *(*given, rows, n, groups, k // groups),
            *(x.stride(0), *strides, y.stride(0), *kinds, tile.m, tile.n, depth),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


@_dequant_mm.register_fake
def _(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(codes))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scales, zeros = inputs
    ctx.save_for_backward(x, codes, scales, zeros)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    x, *weight = ctx.saved_tensors
    return dy @ _restored(x, *weight).to(dy.dtype), None, None, None


_dequant_mm.register_autograd(_gradient, setup_context=_keep)


def dequant_mm(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> Tensor:
    """Tokens times a weight of 8-bit or 4-bit codes, which have no gradient; x has.

    Args:
        x: (rows, in).
        codes: (out, in) int8 or uint8; or (out, in / 2) uint8: two 4-bit codes in a
            byte, the even input in the low half.
        scales: (out, groups), any float dtype; groups divide the inputs.
        zeros: (out, groups), or None: symmetric, and 4-bit codes count from 8.

    Returns:
        (rows, out) in x's dtype.

    Raises:
        R1Error: shapes that do not fit.
    """
    _check(x, codes, scales, zeros)
    # Two groups of odd length would share a byte.
    odd = _packed(x, codes) and x.shape[1] // scales.shape[1] % 2
    if not use_triton(x) or odd:
        return dequant_mm_reference(x, codes, scales, zeros)
    x, codes = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, codes))
    scales = scales.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    result: Tensor = _dequant_mm(x, codes, scales, zeros)
    return result


def _check(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> None:
    flat = x.ndim == codes.ndim == scales.ndim == 2
    if not flat or x.shape[1] not in (codes.shape[1], 2 * codes.shape[1]):
        raise R1Error(
            f"dequant_mm: x {tuple(x.shape)} and codes {tuple(codes.shape)}; give "
            "(rows, in) and (out, in), or (out, in / 2) with two codes in a byte"
        )
    groups = scales.shape[1]
    even = groups > 0 and x.shape[1] % groups == 0
    if not even or len(scales) != len(codes):
        raise R1Error(
            f"dequant_mm: scales {tuple(scales.shape)} for {len(codes)} outputs of "
            f"{x.shape[1]} inputs; give (out, groups), the groups equal"
        )
    if zeros is not None and zeros.shape != scales.shape:
        raise R1Error(
            f"dequant_mm: zeros {tuple(zeros.shape)}, scales {tuple(scales.shape)}; "
            "give as many"
        )
