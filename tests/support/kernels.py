"""One comparison for all kernels: outputs and gradients against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def compare(
    kernel: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tol: float,
) -> None:
    """`kernel` of the inputs as they are, `reference` of them in float64.

    Args:
        tol: absolute and relative, of outputs; gradients have four times as much
            absolutely, being sums of more terms.
    """
    mine = [x.detach().requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = kernel(*mine), reference(*theirs)
    direction = torch.randn_like(wanted)
    found.backward(direction.to(found.dtype))
    wanted.backward(direction)
    torch.testing.assert_close(found.double(), wanted, atol=tol, rtol=tol)
    for m, t in zip(mine, theirs, strict=True):
        assert m.grad is not None
        assert m.grad.dtype == m.dtype
        torch.testing.assert_close(m.grad.double(), t.grad, atol=4 * tol, rtol=tol)
