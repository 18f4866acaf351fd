"""What the weights see: a calibration that reaches every expert.

GPTQ and AWQ choose codes by the error of a layer's *output*. All they need of
its inputs x is H = sum of x x^T: the squared error of W' instead of W is
trace((W - W') H (W - W')^T). A router sends some experts few tokens or none;
those experts see all tokens of their layer instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.moe.experts import Experts
from r1lite.quantization.weight import QuantWeight


@dataclass
class Calibration:
    """Statistics by the names of `float_weights`; experts stacked.

    hessians: (in, in), or (E, in, in), sums of x x^T, float32.
    routed: of each `Experts`: (E,) int64, tokens that the router sent.
    lent: of each `Experts`: those that saw all tokens of their layer.
    """

    hessians: dict[str, Tensor] = field(default_factory=dict)
    routed: dict[str, Tensor] = field(default_factory=dict)
    lent: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, index: int | None, like: Tensor) -> None:
        """Count the inputs x (rows, in) of one weight, or of its index-th expert."""
        if name not in self.hessians:
            n = like.shape[-1]
            zeros = torch.zeros(*like.shape[:-2], n, n, device=like.device)
            self.hessians[name] = zeros
        total = self.hessians[name] if index is None else self.hessians[name][index]
        total += x.t().float() @ x.float()


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Tensor], least: int = 128
) -> Calibration:
    """Run a float model over tokens and remember what every weight saw.

    Args:
        batches: of token ids (batch, seq) without padding.
        least: an expert with fewer tokens than this sees all of its layer's.

    Raises:
        R1Error: nothing to see, or a model that is quantised already.
    """
    if any(isinstance(m, QuantWeight) for m in model.modules()):
        raise R1Error("model: is quantised already; calibrate the float model")
    given = list(batches)
    if not given:
        raise R1Error("calibration: no tokens; give at least one batch")
    found = Calibration()
    with _watching(model, {Experts: lambda n, m, a: _count(found, n, a[1])}):
        _run(model, given)
    for name, counts in found.routed.items():
        found.lent[name] = (counts < least).nonzero()[:, 0].tolist()

    def see_linear(name: str, module: Any, arguments: tuple[Any, ...]) -> None:
        found.add(name, arguments[0].flatten(0, -2), None, module.weight)

    def see_experts(name: str, module: Any, arguments: tuple[Any, ...]) -> None:
        _see_experts(found, name, module, *arguments)

    with _watching(model, {nn.Linear: see_linear, Experts: see_experts}):
        _run(model, given)
    return found


def _count(found: Calibration, name: str, counts: Tensor) -> None:
    found.routed[name] = found.routed.get(name, torch.zeros_like(counts)) + counts


def _see_experts(
    found: Calibration, name: str, module: Experts, rows: Tensor, counts: Tensor
) -> None:
    for i, block in enumerate(rows.split(counts.tolist())):
        seen = rows if i in found.lent[name] else block
        if len(seen):
            gate, up = F.linear(seen, module.gate_up_proj[i]).chunk(2, -1)
            inner = F.silu(gate) * up
            found.add(f"{name}.gate_up_proj", seen, i, module.gate_up_proj)
            found.add(f"{name}.down_proj", inner, i, module.down_proj)


Watcher = Callable[[str, Any, tuple[Any, ...]], None]


@contextmanager
def _watching(
    model: nn.Module, watchers: dict[type[nn.Module], Watcher]
) -> Iterator[None]:
    """Call a watcher before every forward of a module of its kind."""
    handles = []
    for name, module in model.named_modules():
        for kind, watcher in watchers.items():
            if isinstance(module, kind):
                hook = _hook(name, watcher)
                handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, watcher: Watcher) -> Callable[[Any, tuple[Any, ...]], None]:
    def before(module: Any, arguments: tuple[Any, ...]) -> None:
        watcher(name, module, arguments)

    return before


def _run(model: nn.Module, batches: list[Tensor]) -> None:
    """Forward everything, the MTP module too."""
    was_training = model.training
    model.eval()
    for ids in batches:
        out = model(ids)
        if getattr(model, "mtp", None) is not None and ids.shape[1] > 1:
            model.mtp_hidden(ids, out.hidden)  # type: ignore[operator]
    model.train(was_training)


def squared_error(w: Tensor, restored: Tensor, hessian: Tensor) -> Tensor:
    """Summed squared error of the outputs, of each matrix of (..., out, in)."""
    off = w.float() - restored.float()
    return ((off @ hessian) * off).sum((-2, -1))
