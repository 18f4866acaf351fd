"""Master weights: the optimizer's float32 copies of low-precision weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MasterWeights:
    """float32 copies that the optimizer moves; the model holds them rounded.

    An update below half a unit in the last place of bfloat16 would be lost,
    every time. Kept in float32 it adds up (arXiv 1710.03740, section 3.1; V3,
    section 3.3.2, keeps its master weights and gradients in float32).

    Build the optimizer on `copies`; call `take_gradients` before its step and
    `hand_out` after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self.copies = [nn.Parameter(p.detach().float()) for p in self._weights]

    def take_gradients(self) -> None:
        """Move each weight's gradient to its copy, in float32."""
        for weight, copy in zip(self._weights, self.copies, strict=True):
            copy.grad = _widened(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def hand_out(self) -> None:
        """Write the copies into the model, rounded to its dtype."""
        for weight, copy in zip(self._weights, self.copies, strict=True):
            weight.copy_(copy)


def _widened(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.float()
