"""A weight and its codes under any scheme: `encode`, `decode`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.precision.fp8 import E4M3, dequantise, quantise
from r1lite.quantization.codebook import nearest_level, normal_levels
from r1lite.quantization.integers import (
    TINY,
    dequantise_integers,
    in_groups,
    quantise_integers,
    round_up,
)
from r1lite.quantization.packing import pack_nibbles, unpack_nibbles
from r1lite.quantization.schemes import Scheme

TILE = (128, 128)


class Codes(NamedTuple):
    """A stored weight (..., out, in).

    codes: (..., out, in) int8, uint8 or float8_e4m3fn; 4-bit: (..., out, in / 2)
        uint8. scales: (..., out, groups), or (..., blocks down, blocks across)
        for FP8. zeros: (..., out, groups) bfloat16 if asymmetric.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None


def require_finite(w: Tensor, where: str) -> None:
    """Raises R1Error if `w` holds NaN or infinity."""
    if not bool(torch.isfinite(w).all()):
        raise R1Error(
            f"{where}: holds NaN or infinity; train it again or load an "
            "earlier checkpoint"
        )


def encode(w: Tensor, scheme: Scheme, parts: int = 1, where: str = "weight") -> Codes:
    """Round to nearest.

    Args:
        w: (..., out, in), any float dtype.
        parts: matrices that stand above each other in `out` (2 for gate and up):
            an FP8 block never spans two of them.
        where: what to call the weight in an error.

    Raises:
        R1Error: NaN or infinity, or a size that does not fit.
    """
    require_finite(w, where)
    w = w.float()
    if scheme.kind == "fp8":
        return _encode_blocks(w, parts)
    if scheme.kind == "codebook":
        groups = in_groups(w, scheme.group)
        largest = groups.abs().amax(-1)
        largest = torch.where(largest > 0, largest.clamp(min=TINY), 1.0)
        scales = round_up(largest, scheme.scale_dtype)
        codes = nearest_level(groups / scales.float().unsqueeze(-1)).flatten(-2)
        return Codes(pack_nibbles(codes), scales)
    codes, scales, zeros = quantise_integers(
        w, scheme.bits, scheme.group, scheme.symmetric, scheme.scale_dtype
    )
    return stored(codes, scales, zeros, scheme)


def stored(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme
) -> Codes:
    """Integer codes as they are kept: 4-bit ones packed, shifted to 1..15."""
    if scheme.bits == 4:
        codes = pack_nibbles(codes + 8 if scheme.symmetric else codes)
    return Codes(codes, scales, None if zeros is None else zeros.to(torch.bfloat16))


def decode(given: Codes, scheme: Scheme, parts: int = 1) -> Tensor:
    """The weight that the codes stand for: (..., out, in) float32."""
    codes, scales, zeros = given
    if scheme.kind == "fp8":
        return _decode_blocks(codes, scales, parts)
    if scheme.bits == 4:
        codes = unpack_nibbles(codes)
    if scheme.kind == "codebook":
        levels = normal_levels().to(codes.device)[codes.int()]
        return dequantise_integers(levels, scales, None)
    if scheme.bits == 4 and scheme.symmetric:
        codes = codes.to(torch.int8) - 8
    return dequantise_integers(codes, scales, zeros)


def choose(first: Tensor, a: Codes, b: Codes) -> Codes:
    """Of each matrix a's codes where `first` (...) is True, else b's."""
    pick = first[..., None, None]
    zeros = None
    if a.zeros is not None and b.zeros is not None:
        zeros = torch.where(pick, a.zeros, b.zeros)
    codes = torch.where(pick, a.codes, b.codes)
    return Codes(codes, torch.where(pick, a.scales, b.scales), zeros)


def code_shapes(
    scheme: Scheme, shape: tuple[int, ...], parts: int = 1
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor that `encode` makes of a weight's shape."""
    *lead, rows, inputs = shape
    if scheme.kind == "fp8":
        down, across = parts * -(-(rows // parts) // TILE[0]), -(-inputs // TILE[1])
        return {
            "codes": (shape, E4M3),
            "scales": ((*lead, down, across), torch.float32),
        }
    packed = scheme.bits == 4
    whole = torch.int8 if scheme.symmetric else torch.uint8
    grid = (*lead, rows, scheme.groups(inputs))
    found = {
        "codes": (
            (*lead, rows, inputs // 2 if packed else inputs),
            torch.uint8 if packed else whole,
        ),
        "scales": (grid, scheme.scale_dtype),
    }
    if not scheme.symmetric:
        found["zeros"] = (grid, torch.bfloat16)
    return found


def _encode_blocks(w: Tensor, parts: int) -> Codes:
    """Each matrix in blocks of its own, ragged at its edges."""
    # A block of subnormal numbers would have the scale 0, and 0 / 0 is NaN.
    w = torch.where(w.abs() < TINY, 0.0, w)
    rows, inputs = w.shape[-2] // parts, w.shape[-1]
    pairs = [quantise(m, TILE) for m in w.reshape(-1, rows, inputs)]
    codes = torch.stack([c for c, _ in pairs]).view(w.shape)
    scales = torch.stack([s for _, s in pairs])
    return Codes(codes, scales.reshape(*w.shape[:-2], -1, scales.shape[-1]))


def _decode_blocks(codes: Tensor, scales: Tensor, parts: int) -> Tensor:
    rows, inputs = codes.shape[-2] // parts, codes.shape[-1]
    matrices = codes.reshape(-1, rows, inputs)
    blocks = scales.reshape(len(matrices), -1, scales.shape[-1])
    pairs = zip(matrices, blocks, strict=True)
    return torch.stack([dequantise(m, b, TILE) for m, b in pairs]).view(codes.shape)
