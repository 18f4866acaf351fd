"""Activation-aware scaling: inputs that are loud get finer steps.

Source: AWQ, arXiv 2306.00978, section 3.2. Multiply an input's weights by s > 1
before rounding and the input by 1 / s: the product is the same, the rounding
error of that input is smaller. s = loudness^alpha, alpha by trial. AWQ folds 1 / s
into the layer before; experts of one layer share their input, so here it is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.quantization.calibrate import squared_error
from r1lite.quantization.coding import Codes, choose, decode, encode
from r1lite.quantization.schemes import Scheme

TRIALS = 20  # values of alpha from 0 to 1; 0 is rounding to nearest


def awq(
    w: Tensor, hessian: Tensor, scheme: Scheme, parts: int = 1
) -> tuple[Codes, Tensor]:
    """Codes of w / input_scale, and that scale (..., in) bfloat16.

    Args:
        w: (..., out, in); each matrix gets its own alpha.
        hessian: (..., in, in), whose diagonal is the loudness squared.
    """
    loud = hessian.diagonal(dim1=-2, dim2=-1).sqrt()
    best: Tensor | None = None
    codes, factor = encode(w, scheme, parts), torch.ones_like(loud).bfloat16()
    for trial in range(TRIALS + 1):
        inverse = input_scale(loud, trial / TRIALS)
        wide = inverse.float().unsqueeze(-2)
        made = encode(w.float() / wide, scheme, parts)
        error = squared_error(w, decode(made, scheme, parts) * wide, hessian)
        if best is None:
            best, codes, factor = error, made, inverse
            continue
        better = error < best
        best = torch.minimum(error, best)
        codes = choose(better, made, codes)
        factor = torch.where(better.unsqueeze(-1), inverse, factor)
    return codes, factor


def input_scale(loud: Tensor, alpha: float) -> Tensor:
    """1 / s with s = loudness^alpha, its extremes as far from 1 either way."""
    s = loud.clamp(min=1e-4 * loud.amax(-1, keepdim=True).clamp(min=1e-30)) ** alpha
    s = s / (s.amax(-1, keepdim=True) * s.amin(-1, keepdim=True)).sqrt()
    return (1 / s).bfloat16()
