"""One kernel at work: inputs, reference, rival, and the arithmetic it has to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1lite.config import R1Config

Function = Callable[..., Any]
ops = torch.ops.r1lite


def _all(found: Any) -> Any:
    return found


@dataclass(frozen=True)
class Workload:
    """One kernel with everything to run it, to judge it and to say what it costs.

    Attributes:
        op, args: the kernel as `torch.ops.r1lite` has it, and what it is given.
        reference, inputs: the same in PyTorch. With `dy` the kernel is a backward
            pass: the reference's gradients of inputs number `leaves`.
        flops: what has to be computed; what a kernel computes twice counts once.
        unit: whose peak it meets: "vector", "matrix" (16 bits a number) or "fp8".
        rival: a library's own way, by name.
        compared: what of both results has to agree.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    reference: Function
    inputs: tuple[Any, ...]
    flops: float
    unit: str = "vector"
    dy: Tensor | None = None
    leaves: tuple[int, ...] = (0, 1)
    rival: tuple[str, Function] | None = None
    compared: Function = _all

    def kernel(self) -> tuple[Any, ...]:
        """What the op returns."""
        found = getattr(ops, self.op)(*self.args)
        return found if isinstance(found, tuple) else (found,)

    def runner(self, function: Function) -> Callable[[], Any]:
        """`function` of the inputs, or the backward pass of it alone."""
        if self.dy is None:
            return lambda: function(*self.inputs)
        given = list(self.inputs)
        for i in self.leaves:
            given[i] = given[i].detach().requires_grad_()
        out, wanted = function(*given), [given[i] for i in self.leaves]
        return lambda: torch.autograd.grad(out, wanted, self.dy, retain_graph=True)


@dataclass(frozen=True)
class Sizes:
    """A layer of `config` and so many tokens, for the makers of workloads."""

    config: R1Config
    tokens: int
    device: str
    dtype: torch.dtype

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, dtype=dtype or self.dtype, device=self.device)

    def below(self, last: int, *shape: int) -> Tensor:
        return torch.randint(last, shape, device=self.device)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self.normal(rows, columns) / columns**0.5
