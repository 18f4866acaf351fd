"""Whole numbers times a scale: the grid of a group, its codes, and back.

Symmetric: w is about s * q with q from -(2^(b-1) - 1) to its opposite.
Asymmetric: w is about s * (q - z) with q from 0 to 2^b - 1 and a zero point z,
so that 0 is exact in both. Either way w and its restored value differ by s / 2 at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error

TINY = torch.finfo(torch.float32).tiny  # also the smallest normal bfloat16


def in_groups(w: Tensor, group: int | None) -> Tensor:
    """(..., in) -> (..., groups, group), a view.

    Raises:
        R1Error: the groups do not divide the inputs.
    """
    size = w.shape[-1] if group is None else group
    if size < 1 or w.shape[-1] % size:
        raise R1Error(
            f"group: {group} does not divide {w.shape[-1]} inputs; choose one that does"
        )
    return w.unflatten(-1, (-1, size))


def round_up(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The least number of `dtype` that is not below `scale`: nothing clips.

    Only float32's last numbers, for which bfloat16 has none above, get its largest.
    """
    near = scale.to(dtype)
    if dtype != torch.bfloat16:
        return near
    above = (near.view(torch.int16) + 1).view(dtype)  # the next positive number
    largest = torch.finfo(dtype).max
    return torch.where(near.float() < scale, above, near).clamp(max=largest)


def integer_grid(
    groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each group, from its extremes.

    Args:
        groups: (..., group) float32, finite.
        dtype: of the scales, which are rounded up to it.

    Returns:
        scales (...) and, if asymmetric, zeros (...) float32 holding whole
        numbers; a group of zeros has scale 1.
    """
    if symmetric:
        span = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
    else:
        last = 2**bits - 1
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        span = high / last - low / last  # apart: their difference may overflow
    scales = round_up(torch.where(span > 0, span.clamp(min=TINY), 1.0), dtype)
    if symmetric:
        return scales, None
    return scales, (-low / scales.float()).round().clamp(0, last)


def to_codes(x: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """The nearest codes: int8 if symmetric, uint8 if not.

    Args:
        x: float32; scales and zeros broadcast to it.
    """
    steps = x / scales.float()
    if zeros is None:
        last = 2 ** (bits - 1) - 1
        return steps.round().clamp(-last, last).to(torch.int8)
    # Added before rounding: the zero points of HQQ are no whole numbers.
    return (steps + zeros.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)


def from_codes(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """s * q or s * (q - z), float32."""
    steps = codes.float() if zeros is None else codes.float() - zeros.float()
    return steps * scales.float()


def quantise_integers(
    w: Tensor,
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round to nearest: codes (..., in), scales and zeros (..., groups).

    Args:
        w: (..., in), finite.
        bits: 2 to 8.

    Raises:
        R1Error: the groups do not divide the inputs.
    """
    groups = in_groups(w.float(), group)
    scales, zeros = integer_grid(groups, bits, symmetric, dtype)
    wide = None if zeros is None else zeros.unsqueeze(-1)
    codes = to_codes(groups, scales.unsqueeze(-1), wide, bits).flatten(-2)
    return codes, scales, zeros


def dequantise_integers(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """codes (..., in), scales and zeros (..., groups) -> (..., in) float32."""
    groups = codes.unflatten(-1, (scales.shape[-1], -1))
    wide = None if zeros is None else zeros.unsqueeze(-1)
    return from_codes(groups, scales.unsqueeze(-1), wide).flatten(-2)
