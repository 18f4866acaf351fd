"""Two 4-bit codes in a byte, along the input."""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error


def pack_nibbles(codes: Tensor) -> Tensor:
    """(..., in) of 0 to 15 -> (..., in / 2) uint8; the low half is the even index.

    Raises:
        R1Error: an odd number of codes.
    """
    if codes.shape[-1] % 2:
        raise R1Error(
            f"codes: {codes.shape[-1]}, an odd number, cannot share bytes; "
            "use 8-bit codes"
        )
    codes = codes.to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """(..., in / 2) uint8 -> (..., in) uint8 of 0 to 15."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
