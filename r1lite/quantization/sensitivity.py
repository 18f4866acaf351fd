"""Which weights suffer most, and mixed precision under a byte budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.quantization.apply import KEEP, is_kept
from r1lite.quantization.calibrate import Calibration, squared_error
from r1lite.quantization.coding import code_shapes, decode, encode
from r1lite.quantization.schemes import Scheme, scheme_of
from r1lite.quantization.walk import FloatWeight, float_weights, tied_head


@dataclass(frozen=True)
class Cost:
    """What storing one unit under one scheme costs.

    names: the weights of the unit, a linear layer's or both of a layer's experts.
    divergence: nats per token by which the model's predictions change when this
        unit alone is quantised: KL(float, quantised).
    """

    names: tuple[str, ...]
    scheme: str
    bytes: int
    divergence: float


def output_errors(
    model: nn.Module, calibration: Calibration, scheme: str | Scheme
) -> dict[str, Tensor]:
    """Relative error of the output of each weight, rounded to nearest.

    Returns:
        by name a scalar, or (E,) for experts; NaN for what saw nothing.
    """
    found = {}
    for name, w, parts in float_weights(model):
        hessian = calibration.hessians.get(name)
        if hessian is not None:
            fitted = scheme_of(scheme).fitted(w.shape[-1], name)
            w = w.detach()
            off = squared_error(
                w, decode(encode(w, fitted, parts), fitted, parts), hessian
            )
            found[name] = (off / squared_error(w, torch.zeros_like(w), hessian)).sqrt()
    return found


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    batches: Iterable[Tensor],
    schemes: Sequence[str | Scheme],
    keep: tuple[str, ...] = KEEP,
) -> list[Cost]:
    """Quantise one unit at a time and see how far the predictions move.

    Args:
        model: a float R1Model; unchanged afterwards.
        batches: of token ids (batch, seq).
    """
    given = list(batches)
    wanted = [F.log_softmax(model(ids).logits.float(), -1) for ids in given]
    found = []
    for unit in _units(model, keep):
        for scheme in schemes:
            asked, size = scheme_of(scheme), 0
            fits = [asked.fitted(w.tensor.shape[-1], w.name) for w in unit]
            for weight, fit in zip(unit, fits, strict=True):
                size += stored_bytes(weight, fit)
            with _instead(unit, fits):
                moved = sum(
                    F.kl_div(
                        F.log_softmax(model(ids).logits.float(), -1),
                        want,
                        log_target=True,
                        reduction="sum",
                    ).item()
                    for ids, want in zip(given, wanted, strict=True)
                )
            names = tuple(w.name for w in unit)
            tokens = sum(ids.numel() for ids in given)
            found.append(Cost(names, asked.name, size, moved / tokens))
    return found


def stored_bytes(weight: FloatWeight, scheme: Scheme) -> int:
    """Bytes of a weight's codes, scales and zero points."""
    shapes = code_shapes(scheme, tuple(weight.tensor.shape), weight.parts)
    sizes = ((torch.Size(s).numel(), d.itemsize) for s, d in shapes.values())
    return sum(n * each for n, each in sizes)


def _units(model: nn.Module, keep: tuple[str, ...]) -> list[list[FloatWeight]]:
    """Weights that are quantised together: each linear one, experts in pairs."""
    found: dict[str, list[FloatWeight]] = {}
    for weight in float_weights(model):
        kept = is_kept(weight.name, keep)
        if not kept and not (weight.name == "lm_head" and tied_head(model)):
            stacked = weight.tensor.ndim == 3
            owner = weight.name.rpartition(".")[0] if stacked else weight.name
            found.setdefault(owner, []).append(weight)
    return list(found.values())


@contextmanager
def _instead(unit: list[FloatWeight], schemes: list[Scheme]) -> Iterator[None]:
    """Let the weights of a unit be what their codes say, for a while."""
    before = [w.tensor.clone() for w in unit]
    try:
        for (_, tensor, parts), scheme in zip(unit, schemes, strict=True):
            tensor.copy_(decode(encode(tensor, scheme, parts), scheme, parts))
        yield
    finally:
        for weight, old in zip(unit, before, strict=True):
            weight.tensor.copy_(old)


def fit_budget(costs: Sequence[Cost], budget: int) -> dict[str, str]:
    """The scheme of each weight so that all codes fit `budget` bytes.

    Every unit starts with its smallest scheme; then the change that saves the
    most divergence per byte is made, as long as one fits.

    Returns:
        scheme names by weight, for `quantize_`.

    Raises:
        R1Error: even the smallest schemes do not fit.
    """
    choices: dict[tuple[str, ...], list[Cost]] = {}
    for cost in costs:
        choices.setdefault(cost.names, []).append(cost)
    chosen = {n: min(cs, key=lambda c: c.bytes) for n, cs in choices.items()}
    spent = sum(c.bytes for c in chosen.values())
    if spent > budget:
        raise R1Error(
            f"budget: {budget:,} bytes, the smallest schemes take {spent:,}; give more "
            "bytes or smaller schemes"
        )
    while True:
        better = [
            (_gain(chosen[n], c), c)
            for n, cs in choices.items()
            for c in cs
            if c.divergence < chosen[n].divergence
            and spent + c.bytes - chosen[n].bytes <= budget
        ]
        if not better:
            break
        _, best = max(better, key=lambda pair: pair[0])
        spent += best.bytes - chosen[best.names].bytes
        chosen[best.names] = best
    return {name: c.scheme for names, c in chosen.items() for name in names}


def _gain(now: Cost, then: Cost) -> float:
    """Divergence saved per byte; what saves without more bytes comes first."""
    more = then.bytes - now.bytes
    return (now.divergence - then.divergence) / more if more > 0 else float("inf")
