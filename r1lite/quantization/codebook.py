"""NF4: 16 levels where the numbers of a normal distribution are.

Source: QLoRA, arXiv 2305.14314, appendix E. Weights are roughly normal, so
equally likely levels lie dense around 0 and far apart at the ends.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

OUTERMOST = 0.9677083  # the largest level's quantile in the published code


@cache
def normal_levels() -> Tensor:
    """(16,) float32, ascending from -1 to 1: 7 negative, 0, 8 positive."""

    def half(n: int) -> Tensor:
        chances = torch.linspace(OUTERMOST, 0.5, n + 1, dtype=torch.float64)[:-1]
        return torch.special.ndtri(chances)

    zero = torch.zeros(1, dtype=torch.float64)
    levels = torch.cat((-half(7), zero, half(8).flip(0)))
    return (levels / levels.max()).float()


def nearest_level(x: Tensor) -> Tensor:
    """Index of the nearest level, uint8; x from -1 to 1."""
    levels = normal_levels().to(x.device)
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(x, middles).to(torch.uint8)
