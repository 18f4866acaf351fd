"""Finding a model's weights and putting quantised ones in their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from r1lite.moe.experts import Experts
from r1lite.quantization.weight import QuantExperts, QuantLinear, QuantWeight


class FloatWeight(NamedTuple):
    """A weight that can be quantised: its name, tensor and matrices per entry."""

    name: str  # "layers.0.self_attn.o_proj", "layers.1.mlp.experts.down_proj"
    tensor: Tensor  # (out, in), or (E, out, in)
    parts: int  # 2 where gate and up stand above each other


def float_weights(model: nn.Module) -> Iterator[FloatWeight]:
    """Every weight a scheme can take: linear layers and both stacks of experts."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield FloatWeight(name, module.weight, 1)
        elif isinstance(module, Experts):
            yield FloatWeight(f"{name}.gate_up_proj", module.gate_up_proj, 2)
            yield FloatWeight(f"{name}.down_proj", module.down_proj, 1)


def tied_head(model: nn.Module) -> bool:
    """Whether `lm_head` shares its weight with the embedding."""
    head, embedding = (getattr(model, n, None) for n in ("lm_head", "embed_tokens"))
    shared = isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding)
    return shared and head.weight is embedding.weight  # type: ignore[union-attr]


def put_(model: nn.Module, ready: dict[str, QuantWeight]) -> None:
    """Put the quantised modules in the float ones' places."""
    for name, weight in ready.items():
        owner, _, leaf = name.rpartition(".")
        if isinstance(weight, QuantLinear):
            setattr(model.get_submodule(owner), leaf, weight)
        elif leaf == "gate_up_proj":
            above, _, own = owner.rpartition(".")
            both = QuantExperts(weight, ready[f"{owner}.down_proj"])
            setattr(model.get_submodule(above), own, both)


def quant_weights(model: nn.Module) -> dict[str, QuantWeight]:
    """Every quantised weight by name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantWeight)}


def model_bytes(model: nn.Module) -> int:
    """Bytes of everything the model holds, shared storage once.

    Buffers that are not saved count, and the copies that decoding keeps: floats,
    and codes in the order of a kernel.
    """
    held = [*model.parameters(), *model.buffers()]
    copies = (m.copy for m in model.modules() if isinstance(m, QuantLinear))
    held += [c for c in copies if c is not None]
    held += [
        t for w in quant_weights(model).values() for p in w.packed.values() for t in p
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held}
    return sum(s.nbytes() for s in storages.values())
