"""Quantised directories: what stands in the files, written and read in one pass.

Two layouts. All weights in FP8 blocks: DeepSeek-V3's own, one tensor per expert
and matrix with its `weight_scale_inv`, so that releases load here and ours load
where releases do. Anything else: this package's, with codes, scales and zero
points under the weight's name and the schemes in config.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from r1lite.hub import layout
from r1lite.quantization.walk import quant_weights
from r1lite.quantization.weight import QuantLinear, QuantWeight

if TYPE_CHECKING:
    from r1lite.model import R1Model

FP8_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


@dataclass(frozen=True)
class Quantised:
    """Hangs at a quantised model as `model.quantised`; saving asks it.

    method: how its codes were chosen, kept in config.json.
    """

    method: str

    def config(self, model: R1Model) -> dict[str, Any]:
        """config.json's `quantization_config`."""
        weights = quant_weights(model)
        if _is_release(weights):
            return dict(FP8_CONFIG)
        names = {name: w.scheme.name for name, w in weights.items()}
        return {"quant_method": "r1lite", "rounding": self.method, "weights": names}

    def tensors(self, model: R1Model) -> Iterator[tuple[str, Tensor]]:
        """Names in the file and the tensors themselves, or views of them."""
        weights = quant_weights(model)
        own = tuple(f"{name}." for name in weights)
        state = model.state_dict()
        rest = {n: t for n, t in state.items() if not n.startswith(own)}
        yield from layout.export(rest, model.config)
        release = _is_release(weights)
        for name, weight in weights.items():
            held = {k: t for k, t in state.items() if k.startswith(name + ".")}
            if release:
                yield from _released(name, weight, held, model)
            else:
                yield from (
                    (layout.hf_name(k, model.config), t) for k, t in held.items()
                )


def _is_release(weights: dict[str, QuantWeight]) -> bool:
    """Whether DeepSeek's layout can hold these weights."""
    return all(
        w.scheme.kind == "fp8" and w.input_scale is None for w in weights.values()
    )


def _released(
    name: str, weight: QuantWeight, held: dict[str, Tensor], model: R1Model
) -> Iterator[tuple[str, Tensor]]:
    full = layout.hf_name(name, model.config)
    if isinstance(weight, QuantLinear):
        yield f"{full}.weight", weight.codes
        yield f"{full}.weight_scale_inv", weight.scales
        if weight.bias is not None:
            yield f"{full}.bias", weight.bias
        return
    stem, _, leaf = full.rpartition(".")
    kinds = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
    for i, (codes, scales) in enumerate(zip(weight.codes, weight.scales, strict=True)):
        pairs = zip(codes.chunk(len(kinds)), scales.chunk(len(kinds)), strict=True)
        for kind, (matrix, blocks) in zip(kinds, pairs, strict=True):
            yield f"{stem}.{i}.{kind}.weight", matrix
            yield f"{stem}.{i}.{kind}.weight_scale_inv", blocks
