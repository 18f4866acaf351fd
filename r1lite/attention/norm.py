"""Root-mean-square normalisation (arXiv 1910.07467): scale without centring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.hot import hot


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the statistics in float32."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    @hot
    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size) -> the same shape and dtype."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return self.weight * wide.to(x.dtype)
