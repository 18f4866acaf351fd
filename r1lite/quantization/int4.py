"""PyTorch's CPU kernel for 4-bit weights, which decodes in registers.

It multiplies bfloat16 rows with codes that are read four bits at a time, so that
few rows wait for memory and not for decoding. It wants the codes in an order that
depends on the processor, which is why that order is made where it is used and never
saved. Its weight is (q - 8) * scale + zero with q from 0 to 15.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from r1lite.quantization.coding import Codes
from r1lite.quantization.packing import unpack_nibbles
from r1lite.quantization.schemes import Scheme

GROUPS = (32, 64, 128, 256)  # the kernel's
HIGH = 16  # it takes outputs by 16
FEW = 32  # rows up to which it beat making floats first, with AVX2 and AVX-512


class Int4(NamedTuple):
    """A weight (out, in) as the kernel reads it.

    codes: (out, in / 2) uint8 in this processor's order. grid: (in / group, out, 2)
        bfloat16, a scale and a zero each. Together 4 bits a weight and 32 a group.
    """

    codes: Tensor
    grid: Tensor


def takes_int4(x: Tensor, scheme: Scheme, outputs: int) -> bool:
    """Whether the kernel is right and fast for x (rows, in) and such a weight.

    Few bfloat16 rows on a CPU with AVX2 or more, no gradient, 4-bit whole numbers
    in groups that it knows. (In float32 the same kernel is slower than decoding.)
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.requires_grad:
        return False
    fits = scheme.kind == "int" and scheme.bits == 4 and scheme.group in GROUPS
    return fits and 0 < len(x) <= FEW and not outputs % HIGH and int4_works()


@cache
def int4_works() -> bool:
    """Whether this PyTorch has the kernel, in vector code, and it restores codes."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False  # one number after the other: slower than decoding
    scheme = Scheme("int", 4, 32)
    stored = torch.arange(16, dtype=torch.uint8).repeat(64, 1) * 17
    scales = torch.ones(64, 1, dtype=torch.bfloat16)
    try:
        packed = pack_int4(Codes(stored, scales), scheme)
        found = int4_product(torch.eye(32, dtype=torch.bfloat16), packed, scheme)
    except (AttributeError, RuntimeError):  # not built in
        return False
    return torch.equal(found.t().float(), unpack_nibbles(stored).float() - 8)


def pack_int4(given: Codes, scheme: Scheme) -> Int4:
    """Order a weight's codes (out, in / 2) for the kernel; nothing is rounded but
    zero points, to bfloat16.
    """
    scales = given.scales.float()
    # s * (q - z) = (q - 8) * s + (8 - z) * s; symmetric codes are stored as q + 8
    zeros = torch.zeros_like(scales)
    if given.zeros is not None:
        zeros = (8 - given.zeros.float()) * scales
    grid = torch.stack((scales.t(), zeros.t()), -1).to(torch.bfloat16).contiguous()
    wide = unpack_nibbles(given.codes).int()
    return Int4(torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1), grid)


def int4_product(x: Tensor, packed: Int4, scheme: Scheme) -> Tensor:
    """x (rows, in) bfloat16 -> (rows, out) bfloat16; sums are float32."""
    made: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.contiguous(), packed.codes, scheme.group, packed.grid
    )
    return made
