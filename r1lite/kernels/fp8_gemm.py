"""The FP8 product of V3: codes multiplied, sums carried on in float32 (section 3.3.2).

    y_rj = sum over blocks b of s_rb t_jb (sum over the 128 k of b of a_rk w_jk)

A Hopper's tensor core adds FP8 products with about 14 bits. So each block of 128
starts from zero, and its sum goes into a float32 register with its two scales: what
the scales need anyway, and all that is left of the short sums is 128 terms long.

Hopper and Blackwell multiply the codes themselves; elsewhere they become float16,
which holds every E4M3, and the products are as exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import (
    Tile,
    chip_of,
    interpreted,
    jit,
    tl,
    triton,
    use_triton,
)
from r1lite.kernels.fp8 import SIDE, _decode
from r1lite.precision.fp8 import E4M3, dequantise

# Rows x outputs of one program. Outputs divide 128: one block's scale serves a tile.
TILES = {
    "sm_80": Tile(64, 64, 4),
    "sm_90": Tile(128, 128, 8),
    "sm_100": Tile(128, 128, 8),
    "gfx942": Tile(64, 64, 4),
}
DIRECT = ("sm_90", "sm_100")  # chips that multiply E4M3


def fp8_mm_reference(
    a: Tensor, a_scales: Tensor, w: Tensor, w_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """What `fp8_mm` computes: both restored, then one product in float32."""
    left = dequantise(a, a_scales, (1, SIDE))
    return (left @ dequantise(w, w_scales, (SIDE, SIDE)).t()).to(dtype)


@jit
def _product(
    a, a_scales, w, w_scales, y, rows, n, k,
    a_row, as_row, w_row, ws_row, y_row,
    DIRECT: tl.constexpr, SIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile (M, N) of y, block by block."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    real, exists = row < rows, column < n
    wide = row.to(tl.int64)
    a_at = a + wide[:, None] * a_row
    w_at = w + column.to(tl.int64)[None, :] * w_row
    s_at = a_scales + wide * as_row
    t_at = w_scales + (tl.program_id(1) * N // SIDE).to(tl.int64) * ws_row
    acc = tl.zeros((M, N), tl.float32)
    for block in range(0, tl.cdiv(k, SIDE)):
        at = block * SIDE + tl.arange(0, SIDE)
        left = tl.load(
            a_at + at[None, :], mask=real[:, None] & (at < k)[None, :], other=0.0
        )
        right = tl.load(
            w_at + at[:, None], mask=(at < k)[:, None] & exists[None, :], other=0.0
        )
        if not DIRECT:
            left, right = _decode(left), _decode(right)
        part = tl.dot(left, right)
        scale = tl.load(s_at + block, mask=real, other=0.0) * tl.load(t_at + block)
        acc += part * scale[:, None]
    target = y + wide[:, None] * y_row + column[None, :]
    tl.store(target, acc, mask=real[:, None] & exists[None, :])


@torch.library.custom_op("r1lite::fp8_mm", mutates_args=())
def _fp8_mm(
    a: Tensor, a_scales: Tensor, w: Tensor, w_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    (rows, k), n = a.shape, len(w)
    y = a.new_empty(rows, n, dtype=dtype)
    chip = chip_of(a)
    direct = chip in DIRECT and not interpreted()
    if not direct:
        a, w = a.view(torch.uint8), w.view(torch.uint8)
    tile = TILES[chip]
    if y.numel():
        _product[triton.cdiv(rows, tile.m), triton.cdiv(n, tile.n)](
            *(a, a_scales, w, w_scales, y, rows, n, k),
            *(t.stride(0) for t in (a, a_scales, w, w_scales, y)),
            *(direct, SIDE, tile.m, tile.n),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


@_fp8_mm.register_fake
def _(
    a: Tensor, a_scales: Tensor, w: Tensor, w_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    return a.new_empty(len(a), len(w), dtype=dtype)


def fp8_mm(
    a: Tensor,
    a_scales: Tensor,
    w: Tensor,
    w_scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Tokens times weights, both in FP8 with V3's scales.

    No gradient: each of the backward products rounds its own operands.

    Args:
        a: (rows, k) float8_e4m3fn; a_scales: (rows, ceil(k / 128)) float32: what
            `act_quant` gives.
        w: (n, k) float8_e4m3fn; w_scales: (ceil(n / 128), ceil(k / 128)) float32.

    Returns:
        (rows, n) in `dtype`.

    Raises:
        R1Error: shapes or dtypes that do not fit.
    """
    _check(a, a_scales, w, w_scales)
    if not use_triton(a):
        return fp8_mm_reference(a, a_scales, w, w_scales, dtype)
    a, a_scales, w, w_scales = (
        t if t.stride(-1) == 1 else t.contiguous() for t in (a, a_scales, w, w_scales)
    )
    result: Tensor = _fp8_mm(a, a_scales, w, w_scales, dtype)
    return result


def _check(a: Tensor, a_scales: Tensor, w: Tensor, w_scales: Tensor) -> None:
    fits = a.ndim == w.ndim == 2 and a.shape[1:] == w.shape[1:]
    if not fits or not a.dtype == w.dtype == E4M3:
        raise R1Error(
            f"fp8_mm: a {tuple(a.shape)} {a.dtype} and w {tuple(w.shape)} {w.dtype}; "
            "give (rows, k) and (n, k), both float8_e4m3fn"
        )
    across = -(-a.shape[1] // SIDE)
    wanted = (len(a), across), (-(-len(w) // SIDE), across)
    if (a_scales.shape, w_scales.shape) != wanted:
        raise R1Error(
            f"fp8_mm: scales {tuple(a_scales.shape)} and {tuple(w_scales.shape)}; "
            f"give {wanted[0]} and {wanted[1]}: one for 1 x {SIDE} and for "
            f"{SIDE} x {SIDE}"
        )
