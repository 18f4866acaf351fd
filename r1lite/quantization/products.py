"""Products of whole numbers: int8 times int8, summed exactly in int32.

torch._int_mm runs on VNNI and AMX where the CPU has them. On older CPUs its
sums can saturate, so it is tried once on the worst case before it is trusted.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from r1lite.errors import R1Error

EXACT = 1024  # that many products of 127 * 127 are exact in float32


def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (rows, in) and scales (rows, 1): each token has its own scale."""
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scales = torch.where(largest == 0, 1.0, largest / 127)  # NaN stays NaN
    return (wide / scales).round().clamp(-127, 127).to(torch.int8), scales


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a (m, k) int8 times b (n, k) int8 -> (m, n) int32, without integer kernels."""
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for x, y in zip(a.split(EXACT, 1), b.split(EXACT, 1), strict=True):
        total += (x.float() @ y.float().t()).int()
    return total


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a (m, k) int8 times b (n, k) int8 -> (m, n) int32, exact, as fast as it goes."""
    if a.device.type == "cpu" and int_mm_is_exact():
        return torch._int_mm(a, b.t())
    if a.is_cuda and len(a) > 16 and not (a.shape[1] % 8 or len(b) % 8):
        return torch._int_mm(a, b.t())  # the sizes that cuBLAS takes
    return exact_product(a, b)


@cache
def int_mm_is_exact() -> bool:
    """Whether this CPU's torch._int_mm gets the largest possible sums right."""
    signs = torch.tensor([1, -1]).repeat(64)[:, None]
    worst = (127 * signs).expand(128, 256).to(torch.int8).contiguous()
    try:
        return all(
            torch.equal(torch._int_mm(a, worst.t()), exact_product(a, worst))
            for a in (worst[:1], worst, -worst)
        )
    except RuntimeError:  # not built in
        return False


def int8_product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Dynamic int8: x (rows, in) times a weight's codes (out, in), in x's dtype.

    Args:
        scales: (out, 1) of the weight.

    Raises:
        R1Error: a gradient is asked for; rounding has none.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise R1Error(
            "int8-dynamic: rounded tokens have no gradient; use torch.no_grad(), "
            "or train with qat_"
        )
    tokens, sizes = quantise_tokens(x)
    total = integer_product(tokens, codes)
    return (total * sizes * scales.t()).to(x.dtype)
