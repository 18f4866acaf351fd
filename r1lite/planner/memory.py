"""Bytes that a rank holds while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.config import R1Config
from r1lite.planner.count import layer_parameters, parameters
from r1lite.planner.layout import Layout


@dataclass(frozen=True)
class Precision:
    """Bytes per number. V3 (section 3.3.2): weights bf16, gradients and master
    weights float32, both AdamW moments bf16."""

    weight: int = 2
    gradient: int = 4
    master: int = 4
    moments: int = 4  # both together
    activation: int = 2


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
    recompute: bool = True,
) -> RankMemory:
    """What a rank of pipeline stage `stage` holds.

    ZeRO-1: master weights and moments are spread over all ranks that hold the same
    parameter: dp for the shared ones, dp / ep for an expert. In 1F1B stage s keeps
    pp - s micro-batches alive.
    """
    p = precision or Precision()
    shared, routed = stage_parameters(c, layout, stage)
    here = shared + routed / layout.ep
    state = shared / layout.dp + routed / layout.ep / (layout.dp / layout.ep)
    alive = min(layout.pp - stage, layout.micro_batches)
    tokens = layout.micro_rows * layout.seq * alive
    per_token = sum(
        layer_activations(c, layer, recompute)
        for layer in layout.stage_layers(c, stage)
    )
    return RankMemory(
        weights=here * p.weight,
        gradients=here * p.gradient,
        optimizer=state * (p.master + p.moments),
        activations=tokens * per_token * p.activation,
    )


def layer_activations(c: R1Config, layer: int, recompute: bool = False) -> float:
    """Numbers per token that block `layer` keeps for its backward pass.

    With fused attention no score is kept. `recompute` is V3's choice (section
    3.2.3): the outputs of norms and the MLA up-projections are made again.
    """
    heads = c.num_attention_heads
    query = heads * c.qk_head_dim
    kept = 2 * c.hidden_size + c.cache_width  # both norms' inputs, the latent
    kept += heads * c.v_head_dim  # what o_proj multiplies
    kept += c.q_lora_rank or 0
    made_again = 2 * c.hidden_size + c.kv_lora_rank + (c.q_lora_rank or 0)
    made_again += 2 * query + heads * c.v_head_dim  # queries, keys, values
    if c.is_moe(layer):
        k, inner = c.num_experts_per_tok, c.moe_intermediate_size
        kept += k * (c.hidden_size + 4 * inner)  # rows in, gate, up, silu, product
        kept += k * c.hidden_size  # rows out, for the gates' gradient
        kept += c.n_shared_experts * 4 * inner
        kept += 2 * c.n_routed_experts  # logits and scores
    else:
        kept += 4 * c.intermediate_size
    return float(kept if recompute else kept + made_again)


def cache_bytes(c: R1Config, bytes_per_number: int = 2) -> int:
    """Bytes of latent cache per token of context."""
    return c.cache_width * c.num_hidden_layers * bytes_per_number
