"""Products with quantised weights.

Dynamic int8 multiplies whole numbers, summed exactly in int32. torch._int_mm runs
on VNNI and AMX where the CPU has them. On older CPUs its sums can saturate, so it
is tried once on the worst case before it is trusted. Every other scheme makes
floats of its codes and multiplies those; where a whole row has one scale, that is
left for the product.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import use_triton
from r1lite.kernels.dequant import dequant_mm
from r1lite.kernels.fp8 import weight_dequant
from r1lite.quantization.coding import TILE, Codes, decode
from r1lite.quantization.schemes import Scheme

SLAB = 2**17  # weights that are float at once on a CPU: 512 kB, inside its L2 cache
FEW = 4  # rows up to which torch's int8 kernel for bfloat16 was the faster one
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


def weight_product(x: Tensor, given: Codes, scheme: Scheme, parts: int = 1) -> Tensor:
    """x (rows, in) times a weight (out, in) that only its codes hold, in x's dtype.

    On a CPU a slab of the weight is made float at a time and never leaves the
    cache: no float copy of the whole weight is written to memory or read again.
    """
    few = len(x) <= FEW and x.dtype == torch.bfloat16 and not x.requires_grad
    if few and x.device.type == "cpu" and scheme.name == "int8":
        scales = given.scales[:, 0].to(x.dtype)
        return torch._weight_int8pack_mm(x.contiguous(), given.codes, scales)
    if x.device.type != "cpu" or use_triton(x):
        return _on_gpu(x, given, scheme, parts)
    slabs = (s for part in _parts(given, parts) for s in _slabs(part, scheme, x))
    return torch.cat([_slab_product(x, s, scheme) for s in slabs], -1)


def _on_gpu(x: Tensor, given: Codes, scheme: Scheme, parts: int) -> Tensor:
    """By the kernels of chapter 11, which restore weights on their way in."""
    if scheme.kind == "int" and use_triton(x):
        return dequant_mm(x, *given)
    if scheme.kind == "fp8" and use_triton(x):
        pieces = _parts(given, parts)
        w = torch.cat([weight_dequant(p.codes, p.scales, x.dtype) for p in pieces])
        return F.linear(x, w)
    return F.linear(x, decode(given, scheme, parts).to(x.dtype))


def _slab_product(x: Tensor, given: Codes, scheme: Scheme) -> Tensor:
    """x times some rows of a weight; float16 could not hold sums of plain codes."""
    if scheme.name != "int8" or x.dtype == torch.float16:
        return F.linear(x, decode(given, scheme).to(x.dtype))
    sums = F.linear(x, given.codes.to(x.dtype))  # 127 is exact in bfloat16
    return (sums * given.scales.t()).to(x.dtype)


def _parts(given: Codes, parts: int) -> list[Codes]:
    """The matrices that stand above each other."""
    pieces = [None if t is None else t.chunk(parts) for t in given]
    return [Codes(*(None if p is None else p[i] for p in pieces)) for i in range(parts)]  # type: ignore[arg-type]


def _slabs(given: Codes, scheme: Scheme, x: Tensor) -> list[Codes]:
    """Some rows of one matrix after the other, in whole FP8 blocks."""
    high = TILE[0] if scheme.kind == "fp8" else 1
    rows = max(1, SLAB // (x.shape[-1] * TILE[0])) * TILE[0]
    found = []
    for start in range(0, len(given.codes), rows):
        end, first = start + rows, start // high
        some = slice(first, first + rows // high)
        zeros = None if given.zeros is None else given.zeros[some]
        found.append(Codes(given.codes[start:end], given.scales[some], zeros))
    return found
