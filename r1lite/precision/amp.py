"""Mixed precision with torch.amp, and the two places where it fails an MoE."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.moe import experts
from r1lite.moe.gating import Router, Routing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`, everything else as it is.

    float32 needs no context; asked for it, the CPU's autocast warns and does
    nothing. Leave the context before calling backward.

    Raises:
        R1Error: the dtype is none of float32, bfloat16, float16.
    """
    if dtype not in DTYPES:
        raise R1Error(f"dtype: {dtype} is not for autocast; use bfloat16 or float16")
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device, dtype)


def scaler_for(device: str, dtype: torch.dtype) -> torch.amp.GradScaler:
    """A gradient scaler: a real one for float16, a pass-through otherwise.

    bfloat16 has float32's range, so nothing vanishes. One loop serves both:
    ``scale(loss).backward()``, ``unscale_`` before clipping, ``step``,
    ``update``.
    """
    return torch.amp.GradScaler(device, enabled=dtype == torch.float16)


class FullRouter(Router):
    """A router that stays in float32 under autocast.

    The casts in `Router` do not survive there: autocast hands both operands
    of the product to bfloat16 again, and experts change places.
    """

    def forward(self, x: Tensor) -> Routing:
        """As `Router`, with autocast switched off."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class AutocastExperts(experts.Experts):
    """Experts in autocast's dtype. grouped_mm is not on autocast's list."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """As `Experts`; the result has autocast's dtype where it is on."""
        device = rows.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(rows, counts)
        dtype = torch.get_autocast_dtype(device)
        parts = (t.to(dtype) for t in (rows, self.gate_up_proj, self.down_proj))
        low, gate_up, down = parts
        run = experts.looped if self._must_loop(low) else experts.grouped
        return run(low, gate_up, down, counts)


def mixed_precision_(model: nn.Module) -> nn.Module:
    """Make a model fit for autocast: routers in float32, experts in its dtype.

    Norms need no change, they widen by themselves. Names and values of
    parameters stay. Returns the same model.
    """
    for module in model.modules():
        if type(module) is Router:
            module.__class__ = FullRouter
        elif type(module) is experts.Experts:
            module.__class__ = AutocastExperts
    return model
