"""Training as V3 does it in FP8, with every product rounded but on any device.

Numbers are rounded to E4M3 and multiplied in the model's own dtype. So this
shows what the rounding costs, not what the hardware gains, and not what a
tensor core's short accumulator costs (V3, section 3.3.2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from r1lite.moe.experts import Experts
from r1lite.precision.fp8 import Fp8Recipe


class Fp8Product(torch.autograd.Function):
    """x W^T with its three products in FP8: forward, dgrad and wgrad.

    Along the depth of each product the tiles are 1 x 128: over the inputs in
    the forward pass, over the outputs in dgrad, over the tokens in wgrad
    (V3's 128 x 1 tiles). Rounding counts as the identity for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Fp8Recipe) -> Tensor:
        """x: (rows, in), w: (out, in) -> (rows, out)."""
        ctx.save_for_backward(x, w)
        ctx.recipe = recipe
        return recipe.activation(x) @ recipe.weight(w).to(x.dtype).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """dy: (rows, out) -> the gradients of x and w."""
        x, w = (t.to(dy.dtype) for t in ctx.saved_tensors)
        low = ctx.recipe.activation
        dx = low(dy) @ ctx.recipe.weight(w)
        dw = low(dy.t()) @ low(x.t()).t()
        return dx, dw, None


class Fp8Linear(nn.Linear):
    """A linear layer that multiplies in FP8; a bias is added in full."""

    fp8: Fp8Recipe

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y = Fp8Product.apply(x.flatten(0, -2), self.weight, self.fp8)
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class Fp8Experts(Experts):
    """Stacked experts that multiply in FP8, one after the other."""

    fp8: Fp8Recipe

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """As `Experts`; each expert's tokens have tiles of their own."""
        done = []
        weights = self.gate_up_proj.unbind(), self.down_proj.unbind()
        blocks = rows.split(counts.tolist())
        for block, w_in, w_out in zip(blocks, *weights, strict=True):
            if len(block):
                gate, up = Fp8Product.apply(block, w_in, self.fp8).chunk(2, -1)
                inner = F.silu(gate) * up
                done.append(Fp8Product.apply(inner, w_out, self.fp8))
        return torch.cat(done) if done else rows


def simulate_fp8_(model: nn.Module, recipe: Fp8Recipe | None) -> nn.Module:
    """Let a model multiply in FP8, in place; None makes it an ordinary one again.

    As in V3 (section 3.3.1) the embedding, the head, the routers, the norms
    and the attention between queries, keys and values stay as they are.
    Parameters, their names and values do not change.

    Returns:
        the same model.
    """
    swap = {nn.Linear: Fp8Linear, Experts: Fp8Experts}
    if recipe is None:
        swap = {low: full for full, low in swap.items()}
    for name, module in model.named_modules():
        if type(module) in swap and name.rpartition(".")[2] != "lm_head":
            module.__class__ = swap[type(module)]
        if recipe is None:
            vars(module).pop("fp8", None)
        elif isinstance(module, Fp8Linear | Fp8Experts):
            module.fp8 = recipe
    return model
