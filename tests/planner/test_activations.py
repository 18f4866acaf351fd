"""What blocks keep: the formula is the meter's reading, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.memory.meter import MemoryMeter
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.planner.activations import POLICIES, layer_activations

SEQ = 24
CASES: list[dict[str, Any]] = [
    {},
    {"q_lora_rank": 24},
    {"n_shared_experts": 0},
    {"n_shared_experts": 2, "norm_topk_prob": False},
    {"v_head_dim": 48},  # as wide as queries: nothing is padded
    {"routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2},
    {"num_experts_per_tok": 4, "topk_method": "greedy", "scoring_func": "softmax"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize("layer", [0, 1])
def test_equals_the_meter(changes: dict[str, Any], policy: str, layer: int) -> None:
    config = R1Config.preset("nano").with_(num_hidden_layers=2, vocab_size=8, **changes)
    model = checkpoint_blocks_(R1Model(config).train(), policy)
    x = torch.randn(1, SEQ, config.hidden_size, requires_grad=True)
    turn = model.rope(torch.arange(SEQ)[None], x.dtype)
    with MemoryMeter() as meter:
        out = model.layers[layer](x, turn)
    assert out.requires_grad
    # The grouped product keeps where each expert's rows end, in int32.
    bounds = 4 * config.n_routed_experts if layer and policy == "none" else 0
    assert meter.alive == 4 * SEQ * layer_activations(config, layer, policy) + bounds


def test_each_policy_keeps_less_than_the_one_before() -> None:
    v3 = R1Config.preset("v3")
    for layer in (0, 5):
        kept = [layer_activations(v3, layer, p) for p in ("none", "v3", "block")]
        assert kept == sorted(kept, reverse=True)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(R1Error, match="choose none, selective, block, v3"):
        layer_activations(R1Config.preset("nano"), 0, "all")
