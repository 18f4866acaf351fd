"""The work of the quantised kernels: FP8 with V3's scales, and whole numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.kernels.dequant import dequant_mm_reference
from r1lite.kernels.fp8 import SIDE
from r1lite.kernels.fp8_gemm import fp8_mm_reference
from r1lite.kernels.work import Sizes, Workload
from r1lite.precision.fp8 import dequantise, quantise

GROUP = 32  # inputs that share an int4 scale


def _fp8(s: Sizes) -> Iterator[Workload]:
    n, inner = s.config.hidden_size, s.config.moe_intermediate_size
    x, w = s.normal(s.tokens, n), s.matrix(inner, n)
    yield Workload(
        "act_quant", "act_quant", (x, False), quantise, (x, (1, SIDE)),
        3.0 * x.numel(), compared=lambda found: (found[0].float(), found[1]),
    )  # fmt: skip
    codes = quantise(w, (SIDE, SIDE))
    weight = *codes, s.dtype

    def restored(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        return dequantise(codes, scales, (SIDE, SIDE)).to(dtype)

    name, numbers = "weight_dequant", float(w.numel())
    yield Workload(name, name, weight, restored, weight, numbers)
    both = *quantise(x, (1, SIDE)), *weight
    flops = 2.0 * s.tokens * numbers
    rival = "cuBLAS 16 bit", lambda: F.linear(x, w)
    yield Workload(
        "fp8 product", "fp8_mm", both, fp8_mm_reference, both, flops, "fp8",
        rival=rival,
    )  # fmt: skip


def _integers(s: Sizes) -> Iterator[Workload]:
    n, inner = s.config.hidden_size, s.config.moe_intermediate_size
    w = s.matrix(inner, n)
    eight = s.below(255, inner, n).sub(127).to(torch.int8)
    row = torch.rand(inner, 1, device=s.device) / 2000
    four = s.below(256, inner, n // 2).to(torch.uint8)
    groups = [torch.rand(inner, n // GROUP, device=s.device) for _ in range(2)]
    small, zeros = (g.to(s.dtype) for g in (groups[0] / 100, groups[1].mul(15).round()))
    for rows, what in ((s.tokens, "product"), (1, "one row")):
        x, flops = s.normal(rows, n), 2.0 * rows * inner * n
        unit = "matrix" if rows > 1 else "vector"
        for bits, weight in (
            ("int8", (eight, row, None)),
            ("int4", (four, small, zeros)),
        ):
            plain = dequant_mm_reference, (x, *weight)
            yield Workload(
                f"{bits} {what}", "dequant_mm", plain[1], *plain, flops, unit,
                rival=("cuBLAS 16 bit", lambda x=x: F.linear(x, w)),
            )  # fmt: skip
