"""Bytes that a rank holds while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.config import R1Config
from r1lite.planner.activations import layer_activations
from r1lite.planner.count import layer_parameters, parameters
from r1lite.planner.layout import Layout
from r1lite.planner.schedule import held_stages


@dataclass(frozen=True)
class Precision:
    """Bytes per number. By default V3's (sections 3.3.2 and 3.3.3): weights bf16,
    gradients and master weights float32, both AdamW moments bf16; activations bf16,
    where V3 keeps most of its in FP8."""

    weight: int = 2
    gradient: int = 4
    master: int = 4
    moments: int = 4  # both together
    activation: int = 2


# What the book's models train in: float32 weights are their own master.
FLOAT32 = Precision(weight=4, gradient=4, master=0, moments=8, activation=4)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All together; a framework needs a few GB more for its own buffers."""
        return self.weights + self.gradients + self.optimizer + self.activations


def stage_parameters(c: R1Config, layout: Layout, stage: int) -> tuple[int, int]:
    """(shared by all ranks of the stage, routed experts of the whole stage)."""
    shared = routed = 0
    for layer in layout.stage_layers(c, stage):
        parts = layer_parameters(c, layer)
        routed += parts.pop("routed experts", 0)
        shared += sum(parts.values())
    whole = parameters(c)
    if stage == 0:
        shared += whole["embedding"]
    if stage == layout.pp - 1:
        shared += whole["head"] + c.hidden_size
        if c.num_nextn_predict_layers:
            block = layer_parameters(c, c.num_hidden_layers)
            routed += block.get("routed experts", 0)
            shared += whole["MTP"] - block.get("routed experts", 0)
    return shared, routed


def rank_memory(
    c: R1Config,
    layout: Layout,
    stage: int = 0,
    precision: Precision | None = None,
    policy: str = "v3",
    schedule: str = "1f1b",
) -> RankMemory:
    """What a rank in place `stage` of the pipeline holds.

    Experts are divided over ep ranks, copies and optimizer states as `layout.cut`
    says. Of n stages, stage s keeps n - s micro-batches alive.

    Args:
        policy: what a block keeps (`layer_activations`).
        schedule: decides which stages a rank has (`held_stages`).
    """
    p = precision or Precision()
    parts, held, copies = held_stages(layout, schedule, stage)
    found = [stage_parameters(c, parts, s) for s in held]
    shared, routed = (float(sum(kind)) for kind in zip(*found, strict=True))
    here, state = shared + routed / layout.ep, shared + routed / layout.ep
    if layout.cut == "optimizer":  # an expert has dp / ep copies
        state = (shared + routed) / layout.dp / copies
    elif layout.cut == "fsdp":
        here = state = shared / layout.dp + routed / layout.ep
    numbers = 0.0
    for s in held:
        alive = min(parts.pp - s, layout.micro_batches / copies)
        layers = parts.stage_layers(c, s)
        if s == parts.pp - 1 and c.num_nextn_predict_layers:
            layers.append(c.num_hidden_layers)  # the MTP module's block
        numbers += alive * sum(layer_activations(c, i, policy) for i in layers)
    return RankMemory(
        weights=here * p.weight,
        gradients=here * p.gradient,
        optimizer=state * (p.master + p.moments),
        activations=layout.micro_rows * layout.seq * numbers * p.activation,
    )


def cache_bytes(c: R1Config, bytes_per_number: int = 2, latent: bool = True) -> int:
    """Bytes of cache per token of context.

    Args:
        latent: MLA's; False for the keys and values of every head, uncompressed.
    """
    width = c.cache_width
    if not latent:
        width = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    return width * c.num_hidden_layers * bytes_per_number
