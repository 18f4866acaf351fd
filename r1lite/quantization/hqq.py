"""HQQ: better zero points without any data.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization". The zero point need
not be a whole number, and a few large errors are cheaper than many small ones:
minimise the p-norm of W - s (Q - z) with p < 1 over z, by turns with an error
term E that takes the large ones out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.quantization.coding import Codes, stored
from r1lite.quantization.integers import from_codes, in_groups, integer_grid, to_codes
from r1lite.quantization.schemes import Scheme


def hqq(
    w: Tensor, scheme: Scheme, steps: int = 20, p: float = 0.7, beta: float = 10.0
) -> Codes:
    """Codes of w (..., out, in) with fitted zero points.

    Args:
        beta: how strongly E follows the errors; grows by 1 % a step.

    Raises:
        R1Error: a scheme without zero points.
    """
    if scheme.kind != "int" or scheme.symmetric:
        raise R1Error(
            f"method: hqq moves the zero point, {scheme.name} has none; choose an "
            "asymmetric scheme such as int4-g32-asym"
        )
    groups = in_groups(w.float(), scheme.group)
    scales, whole = integer_grid(groups, scheme.bits, False, scheme.scale_dtype)
    assert whole is not None
    s, z = scales.float().unsqueeze(-1), whole.unsqueeze(-1)
    best, least = z, _mean_error(groups, s, z, scheme.bits)
    for _ in range(steps):
        q = to_codes(groups, s, z, scheme.bits).float()
        off = groups - from_codes(q, s, z)
        large = shrink(off, p, beta)
        z = (q - (groups - large) / s).mean(-1, keepdim=True).bfloat16().float()
        error = _mean_error(groups, s, z, scheme.bits)
        best = torch.where(error < least, z, best)
        least = torch.minimum(error, least)
        beta *= 1.01
    codes = to_codes(groups, s, best, scheme.bits).flatten(-2)
    return stored(codes, scales, best.squeeze(-1), scheme)


def shrink(off: Tensor, p: float, beta: float) -> Tensor:
    """The E that suits these errors: 0 where they are small (eq. of the p-norm)."""
    size = off.abs()
    cut = size.clamp(min=1e-12) ** (p - 1) / beta
    return off.sign() * (size - cut).clamp(min=0)


def _mean_error(groups: Tensor, s: Tensor, z: Tensor, bits: int) -> Tensor:
    """Mean absolute error of each group, (..., groups, 1)."""
    restored = from_codes(to_codes(groups, s, z, bits), s, z)
    return (groups - restored).abs().mean(-1, keepdim=True)
