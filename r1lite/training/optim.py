"""Optimizers and learning-rate schedules.

AdamW as DeepSeek-V3 used it (arXiv 2412.19437, section 4.2: betas 0.9 / 0.95,
weight decay 0.1, gradient norm clipped to 1.0), and Muon for the matrices with
AdamW for the rest, which learns faster per token at the book's small sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from r1lite.settings import Section

# Coefficients of the quintic Newton-Schulz step (K. Jordan et al., "Muon",
# 2024): chosen for a steep slope at zero, so 5 steps bring every singular
# value near 1 instead of exactly to it.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class OptimConfig(Section):
    """Optimizer section of a stage. `lr` is AdamW's, `muon_lr` the matrices'."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    muon_lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup_steps: int = 10
    decay_fraction: float = 0.5
    final_lr: float = 0.1


def lr_scale(config: OptimConfig, step: int, total: int) -> float:
    """Factor on the learning rate at `step` (0-based) of `total`.

    Linear warm-up, a constant part, then a cosine over the last
    `decay_fraction` of the steps down to `final_lr`, as V3 section 4.2 does.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_steps = max(1, round(total * config.decay_fraction))
    done = (step - (total - decay_steps)) / decay_steps
    if done <= 0:
        return 1.0
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.final_lr + (1 - config.final_lr) * wave


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of `update` (..., rows, cols) towards 1."""
    a, b, c = NEWTON_SCHULZ
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum whose direction is orthogonalised, for 2-D and stacked 3-D weights.

    A stack of experts (experts, rows, cols) is a batch of matrices: each gets
    its own orthogonal update, which `torch.optim.Muon` (2-D only) cannot do.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        # Equal shapes are stacked: one batched product instead of many small.
        directions = []
        for p in params:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            m = state["momentum"]
            assert p.grad is not None
            m.lerp_(p.grad, 1 - group["momentum"])
            directions.append(_whole(p.grad.lerp(m, group["momentum"])))  # Nesterov
        updates = orthogonalise(torch.stack(directions))
        rows, cols = params[0].shape[-2:]
        lr = group["lr"] * max(1.0, rows / cols) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(_like(update, p), alpha=-lr)


def _whole(x: Tensor) -> Tensor:
    """A matrix that FSDP cut by rows has singular values only as a whole."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _like(x: Tensor, p: Tensor) -> Tensor:
    """`x`, alike on every rank, cut as `p` is."""
    if not isinstance(p, DTensor):
        return x
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(hidden matrices, everything else).

    Embedding, head and router rows belong to single tokens or experts, so
    they are not matrices in Muon's sense; norms and biases are vectors.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in model.named_parameters():
        rowwise = any(k in name for k in ("embed_tokens", "lm_head", "gate.weight"))
        (rest if p.ndim < 2 or rowwise else matrices).append(p)
    return matrices, rest


def build(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """The stage's optimizers; weight decay touches matrices only."""
    matrices, rest = split_parameters(model)
    betas = (config.beta1, config.beta2)
    if config.name == "muon":
        return [
            Muon(matrices, config.muon_lr, weight_decay=config.weight_decay),
            AdamW(rest, config.lr, betas, weight_decay=0.0),
        ]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [AdamW(groups, config.lr, betas)]


def set_lr(optimizers: list[Optimizer], scale: float) -> None:
    """Set each group's rate to `scale` times the rate it was built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group.setdefault("base_lr", group["lr"])


def step(optimizers: list[Optimizer], norm: float, skip: bool = False) -> None:
    """Update and clear the gradients, whose norm before clipping was `norm`.

    A step whose gradient is not finite is skipped, as with `skip`: one bad batch
    must not turn every weight into NaN. The caller logs the norm, so it is seen.
    """
    for optimizer in optimizers:
        if math.isfinite(norm) and not skip:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
