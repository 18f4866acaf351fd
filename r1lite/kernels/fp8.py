"""FP8 on any chip: tiles of 1 x 128 and blocks of 128 x 128 (V3, section 3.3.2).

    scale = largest number of a tile / 448,  code = E4M3(x / scale)

Codes are made and read by integer arithmetic on bytes. An A100 has no E4M3 and an
MI300X has another one; Triton's interpreter has it but rounds 1.99 to 1 and reads
NaN as 480. Bits are the same everywhere, so what a CPU proves holds on a GPU. The
interpreter's bfloat16 rounds as wrongly: it is proven in float32 and float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import jit, tl, triton, use_triton
from r1lite.precision.fp8 import E4M3, dequantise, quantise

SIDE = 128  # numbers of an activation, and the side of a block of weights
TILES = 8  # of one program of `act_quant`
ROWS = 32  # of one program of `weight_dequant`


@jit
def _encode(v):
    """float32 -> the byte of the nearest E4M3, ties to even; beyond 448 it is 448."""
    bits = v.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Half of the last bit that stays, then cut; 120 is the biases' difference.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9, which float32 has from 2^14 on: its adder rounds.
    small = (tl.abs(v) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.minimum(tl.where(size < 0x3C800000, small, normal), 0x7E)
    code = tl.where(size > 0x7F800000, 0x7F, code)  # not a number stays none
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@jit
def _decode(code):
    """The byte of an E4M3 -> float16, which holds every one of them exactly."""
    code = code.to(tl.uint16)
    size = code & 0x7F
    half = ((code & 0x80) << 8) | (size << 7)
    # float16 counts exponents from 15 and not from 7: everything is 2^8 too small.
    v = half.to(tl.float16, bitcast=True) * 256.0
    return tl.where(size == 0x7F, float("nan"), v)


@jit
def _quantise(
    x, codes, scales, stride, n, tiles,
    POWER: tl.constexpr, SIDE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """TILES tiles of one row."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    at = tile[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    v = tl.load(x + row * stride + at, mask=at < n, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(v), 1), 448.0)
    # Maxima pass over NaN on a GPU. Such a tile gets 1, as one of zeros does.
    numbers = tl.max((v != v).to(tl.int32), 1) == 0
    scale = tl.where(numbers & (scale > 0.0), scale, 1.0)
    if POWER:  # up to the next power of two: only the exponent is left
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    tl.store(codes + row * n + at, _encode(tl.div_rn(v, scale[:, None])), mask=at < n)
    tl.store(scales + row * tiles + tile, scale, mask=tile < tiles)


@jit
def _dequantise(
    codes, scales, y, rows, n, c_row, s_row, SIDE: tl.constexpr, ROWS: tl.constexpr
):
    """ROWS rows of one block."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    wide = row.to(tl.int64)[:, None]
    v = _decode(tl.load(codes + wide * c_row + column[None, :], mask=inside, other=0))
    block = (tl.program_id(0) * ROWS // SIDE).to(tl.int64)
    scale = tl.load(scales + block * s_row + tl.program_id(1))
    tl.store(y + wide * n + column[None, :], v.to(tl.float32) * scale, mask=inside)


@torch.library.custom_op("r1lite::act_quant", mutates_args=())
def _act_quant(x: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    codes, scales = _empty(x)
    (rows, n), tiles = x.shape, scales.shape[1]
    if x.numel():
        _quantise[rows, triton.cdiv(tiles, TILES)](
            *(x, codes.view(torch.uint8), scales, x.stride(0), n, tiles),
            *(power_of_two, SIDE, TILES),
        )
    return codes, scales


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, n = x.shape
    scales = x.new_empty(rows, -(-n // SIDE), dtype=torch.float32)
    return x.new_empty(rows, n, dtype=E4M3), scales


@_act_quant.register_fake
def _(x: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    return _empty(x)


@torch.library.custom_op("r1lite::weight_dequant", mutates_args=())
def _weight_dequant(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    rows, n = codes.shape
    y = codes.new_empty(rows, n, dtype=dtype)
    if y.numel():
        _dequantise[triton.cdiv(rows, ROWS), triton.cdiv(n, SIDE)](
            *(codes.view(torch.uint8), scales, y, rows, n),
            *(codes.stride(0), scales.stride(0), SIDE, ROWS),
        )
    return y


@_weight_dequant.register_fake
def _(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.new_empty(codes.shape, dtype=dtype)


def act_quant(x: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Activations in tiles of 1 x 128, the last of a row maybe shorter.

    No gradient: V3 rounds what enters each product, not what a gradient flows through.

    Args:
        x: (rows, n).
        power_of_two: round scales up to one, as V3.1 does.

    Returns:
        codes (rows, n) float8_e4m3fn, scales (rows, ceil(n / 128)) float32.

    Raises:
        R1Error: x has not two dimensions.
    """
    if x.ndim != 2:
        raise R1Error(f"act_quant: x {tuple(x.shape)}; give (rows, n)")
    if not use_triton(x):
        return quantise(x, (1, SIDE), power_of_two)
    x = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
    found: tuple[Tensor, Tensor] = _act_quant(x, power_of_two)
    return found


def weight_dequant(
    codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Weights from codes and one scale for each block of 128 x 128.

    Args:
        codes: (out, in) float8_e4m3fn; scales: (ceil(out / 128), ceil(in / 128))
            float32.

    Returns:
        (out, in) in `dtype`.

    Raises:
        R1Error: shapes that do not fit, or codes of another dtype.
    """
    blocks = tuple(-(-n // SIDE) for n in codes.shape)
    if codes.ndim != 2 or codes.dtype != E4M3 or scales.shape != blocks:
        raise R1Error(
            f"weight_dequant: codes {tuple(codes.shape)} {codes.dtype} and scales "
            f"{tuple(scales.shape)}; give (out, in) float8_e4m3fn and a scale for "
            f"each block of {SIDE} x {SIDE}"
        )
    if not use_triton(codes):
        return dequantise(codes, scales, (SIDE, SIDE)).to(dtype)
    codes = codes if codes.stride(-1) == 1 else codes.contiguous()
    scales = scales if scales.stride(-1) == 1 else scales.contiguous()
    result: Tensor = _weight_dequant(codes, scales, dtype)
    return result
