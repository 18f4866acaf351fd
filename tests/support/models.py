"""Tiny models whose every number matters: no zero bias, no norm at one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.model import R1Model

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "routed_scaling_factor": 1.0,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}


def tiny_config(**changes: Any) -> R1Config:
    """TINY with changes."""
    return R1Config.from_dict({**TINY, **changes})


def tiny_model(**changes: Any) -> R1Model:
    """A tiny model in evaluation mode, stirred; draws from the global seed."""
    return stir(R1Model(tiny_config(**changes)).eval())


@torch.no_grad()
def stir(model: R1Model) -> R1Model:
    """Move what starts at 0 or 1 away from it, so that ignoring it shows."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("e_score_correction_bias", ".bias")):
            tensor.normal_(std=0.3)
        elif "norm" in name:
            tensor.uniform_(0.5, 1.5)
    return model


def token_ids(batch: int, seq: int, vocab: int = TINY["vocab_size"]) -> Tensor:
    """Random ids (batch, seq)."""
    return torch.randint(0, vocab, (batch, seq))
