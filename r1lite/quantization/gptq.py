"""GPTQ: round one input after the other, let the rest make up for the error.

Source: arXiv 2210.17323, algorithm 1. With U the upper Cholesky factor of
H^-1, rounding column j by an error e costs least if the columns after it move
by -e / U_jj * U_j,rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.quantization.calibrate import squared_error
from r1lite.quantization.coding import Codes, choose, decode, encode, stored
from r1lite.quantization.integers import from_codes, integer_grid, to_codes
from r1lite.quantization.schemes import Scheme


def gptq(w: Tensor, hessian: Tensor, scheme: Scheme, damp: float = 0.01) -> Codes:
    """Codes of w (..., out, in) for inputs with `hessian` (..., in, in).

    A matrix that rounding to nearest serves better keeps that.

    Args:
        damp: added to H's diagonal, as a share of its mean.

    Raises:
        R1Error: a scheme without whole numbers.
    """
    if scheme.kind != "int":
        raise R1Error(
            f"method: gptq rounds to whole numbers, {scheme.name} has none; choose an "
            "int scheme or rtn"
        )
    size, inputs = scheme.group or w.shape[-1], w.shape[-1]
    left = w.float().reshape(-1, *w.shape[-2:]).clone()
    factor = upper_factor(hessian.reshape(-1, inputs, inputs), damp)
    codes: list[Tensor] = []
    grids: list[tuple[Tensor, Tensor | None]] = []
    for start in range(0, inputs, size):
        block, end = left[..., start : start + size], start + size
        grid = integer_grid(block, scheme.bits, scheme.symmetric, scheme.scale_dtype)
        own = factor[:, start:end, start:end]
        found, errors = _round_block(block, own, scheme.bits, *grid)
        left[..., end:] -= errors @ factor[:, start:end, end:]
        codes.append(found)
        grids.append(grid)

    def wide(columns: list[Tensor]) -> Tensor:
        return torch.stack(columns, -1).view(*w.shape[:-1], -1)

    zeros = [zero for _, zero in grids if zero is not None]
    made = stored(
        torch.cat(codes, -1).view(w.shape),
        wide([scale for scale, _ in grids]),
        wide(zeros) if zeros else None,
        scheme,
    )
    plain = encode(w, scheme)
    ours, theirs = (squared_error(w, decode(c, scheme), hessian) for c in (made, plain))
    return choose(ours <= theirs, made, plain)


def _round_block(
    block: Tensor, factor: Tensor, bits: int, scales: Tensor, zeros: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Round the columns of a group in order; `block` is changed on the way.

    Args:
        block: (B, out, group); factor: (B, group, group), upper.

    Returns:
        codes and the errors / U_jj, both (B, out, group).
    """
    codes, errors = [], []
    for j in range(block.shape[-1]):
        column = block[..., j]
        code = to_codes(column, scales, zeros, bits)
        error = (column - from_codes(code, scales, zeros)) / factor[:, j, j, None]
        block[..., j + 1 :] -= error.unsqueeze(-1) * factor[:, None, j, j + 1 :]
        codes.append(code)
        errors.append(error)
    return torch.stack(codes, -1), torch.stack(errors, -1)


def upper_factor(hessian: Tensor, damp: float) -> Tensor:
    """Upper Cholesky factor of the inverse of (B, in, in), damped, float32."""
    h = hessian.double()
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    extra = damp * diagonal.mean(-1, keepdim=True)
    extra = torch.where(extra > 0, extra, 1.0).expand_as(diagonal)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h + extra.diag_embed()))
    return torch.linalg.cholesky(inverse, upper=True).float()
