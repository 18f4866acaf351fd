"""A quantised weight and the modules that hold one: linear layers, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.quantization.coding import Codes, code_shapes, decode
from r1lite.quantization.int4 import Int4, int4_product, pack_int4, takes_int4
from r1lite.quantization.products import int8_product, weight_product
from r1lite.quantization.schemes import Scheme


class QuantWeight(nn.Module):
    """Buffers `codes`, `scales`, maybe `zeros` and `input_scale`, for (..., out, in).

    ``input_scale`` (..., in) multiplies what comes in: activation-aware scaling
    divided the weight by it before rounding. `.to(dtype)` changes what products
    are computed in, never what is stored. ``packed`` holds 4-bit weights a second
    time, as PyTorch's kernel for few bfloat16 rows wants them: of each expert from
    its first such product on, gone when the model is moved or loaded, never saved.

    Args:
        shape: of the weight: (out, in), or (E, out, in) for stacked experts.
        parts: see `encode`.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    input_scale: Tensor | None
    like: Tensor

    def __init__(
        self,
        scheme: Scheme,
        shape: tuple[int, ...],
        given: Codes,
        dtype: torch.dtype,
        parts: int = 1,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.scheme, self.shape, self.parts = scheme, shape, parts
        for name, tensor in given._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("input_scale", input_scale)
        like = torch.empty(0, dtype=dtype, device=given.codes.device)
        self.register_buffer("like", like, persistent=False)
        self.packed: dict[int | None, Int4] = {}

    @classmethod
    def empty(
        cls,
        scheme: Scheme,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        parts: int = 1,
        scaled: bool = False,
        **options: Any,
    ) -> QuantWeight:
        """Memory on the default device for a weight that is read later."""
        made = {
            name: torch.empty(size, dtype=kind)
            for name, (size, kind) in code_shapes(scheme, shape, parts).items()
        }
        size = (*shape[:-2], shape[-1])
        scale = torch.empty(size, dtype=torch.bfloat16) if scaled else None
        return cls(scheme, shape, Codes(**made), dtype, parts, scale, **options)

    def dequantise(self, index: int | None = None) -> Tensor:
        """The float32 weight that is computed with; of one expert if `index`."""
        given, factor = self._held(index)
        w = decode(given, self.scheme, self.parts)
        return w if factor is None else w * factor.float().unsqueeze(-2)

    def product(self, x: Tensor, index: int | None = None) -> Tensor:
        """x (rows, in) times the (index-th) weight -> (rows, out) in x's dtype."""
        given, factor = self._held(index)
        if factor is not None:
            x = x * factor.to(x.dtype)
        if self.scheme.activations:
            return int8_product(x, given.codes, given.scales)
        if takes_int4(x, self.scheme, self.shape[-2]):
            if index not in self.packed:
                self.packed[index] = pack_int4(given, self.scheme)
            return int4_product(x, self.packed[index], self.scheme)
        return weight_product(x, given, self.scheme, self.parts)

    def _held(self, index: int | None) -> tuple[Codes, Tensor | None]:
        """Codes and input scale, of one expert if `index`."""
        held = [self.codes, self.scales, self.zeros, self.input_scale]
        if index is not None:
            held = [None if t is None else t[index] for t in held]
        return Codes(*held[:3]), held[3]  # type: ignore[arg-type]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Move, but never convert what is stored (FP8 counts as floating)."""
        self.packed.clear()
        kept = {n: b for n, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            new = self._buffers[name]
            if name != "like" and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.packed.clear()
        super()._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{tuple(self.shape)}, {self.scheme.name}"


class QuantLinear(QuantWeight):
    """Stands for an nn.Linear.

    Args:
        keep_copy: make the float `weight` once and keep it. MLA reads that of
            kv_b_proj for every token that it decodes.
    """

    def __init__(
        self,
        *args: Any,
        bias: Tensor | None = None,
        keep_copy: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.keep_copy = keep_copy
        self.copy: Tensor | None = None

    def _load_from_state_dict(self, *args: Any) -> None:
        self.copy = None
        super()._load_from_state_dict(*args)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight (out, in) in the model's dtype."""
        if self.copy is not None:
            return self.copy
        # Made in inference mode it could not take part in a gradient later.
        with torch.inference_mode(False), torch.no_grad():
            made = self.dequantise().to(self.like.dtype)
        if self.keep_copy:
            self.copy = made
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y = self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self.copy = None
        return super()._apply(fn, recurse)


class QuantExperts(nn.Module):
    """Stands for `Experts`: the same rows and counts, one expert after the other."""

    def __init__(self, gate_up_proj: QuantWeight, down_proj: QuantWeight) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows: (N, hidden) sorted by expert, counts: (E,) -> (N, hidden)."""
        done = []
        for i, block in enumerate(rows.split(counts.tolist())):
            if len(block):
                gate, up = self.gate_up_proj.product(block, i).chunk(2, -1)
                done.append(self.down_proj.product(F.silu(gate) * up, i))
        return torch.cat(done) if done else rows
