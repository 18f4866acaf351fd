"""Training for quantization: the forward pass rounds, the gradient does not.

The straight-through estimator (arXiv 1308.3432): round(w) counts as w for the
gradient. The float weights stay and learn; they settle where rounding hurts
less. `quantize_` with the same scheme then gives exactly the model that was
trained.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.moe.experts import Experts, grouped, looped
from r1lite.quantization.apply import KEEP, is_kept
from r1lite.quantization.coding import decode, encode
from r1lite.quantization.products import quantise_tokens
from r1lite.quantization.schemes import Scheme, scheme_of
from r1lite.quantization.walk import tied_head


def fake_quantise(w: Tensor, scheme: Scheme, parts: int = 1) -> Tensor:
    """What w (..., out, in) is after rounding; its gradient is w's."""
    restored = decode(encode(w.detach(), scheme, parts), scheme, parts)
    return w + (restored.to(w.dtype) - w).detach()


class QatLinear(nn.Linear):
    """A linear layer that multiplies with its rounded weight."""

    scheme: Scheme

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        x = _fake_tokens(x, self.scheme)
        return F.linear(x, fake_quantise(self.weight, self.scheme), self.bias)


class QatExperts(Experts):
    """Stacked experts that multiply with their rounded weights."""

    schemes: tuple[Scheme, Scheme]  # their inputs may need different groups

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """As `Experts`."""
        up = fake_quantise(self.gate_up_proj, self.schemes[0], 2)
        down = fake_quantise(self.down_proj, self.schemes[1])
        run = looped if self._must_loop(rows) else grouped
        return run(rows, up, down, counts)


def _fake_tokens(x: Tensor, scheme: Scheme) -> Tensor:
    if not scheme.activations:
        return x
    codes, scales = quantise_tokens(x.detach())
    return x + ((codes * scales).to(x.dtype) - x).detach()


def qat_(
    model: nn.Module, scheme: str | Scheme | None, keep: tuple[str, ...] = KEEP
) -> nn.Module:
    """Let a model train with rounded weights, in place; None ends it.

    Parameters, their names and values do not change. MLA reads the float
    weight of kv_b_proj when it decodes from a cache: to generate, quantise a copy.

    Returns:
        the same model.

    Raises:
        R1Error: an unknown scheme, or a group that does not fit.
    """
    asked = None if scheme is None else scheme_of(scheme)
    tied = tied_head(model)
    for name, module in model.named_modules():
        if isinstance(module, QatLinear | QatExperts):
            plain = nn.Linear if isinstance(module, QatLinear) else Experts
            module.__class__ = plain  # type: ignore[assignment]
        kept = is_kept(name, keep) or (tied and name == "lm_head")
        if asked is None or kept:
            continue
        if type(module) is nn.Linear:
            fitted = asked.fitted(module.in_features, name)
            module.__class__ = QatLinear
            module.scheme = fitted  # type: ignore[assignment]
        elif type(module) is Experts:
            stacks = module.gate_up_proj, module.down_proj
            module.__class__ = QatExperts
            module.schemes = tuple(asked.fitted(s.shape[-1], name) for s in stacks)  # type: ignore[assignment]
    return model
