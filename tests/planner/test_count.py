"""Counting: equal to the built model, to the published numbers, to hand counts."""

from __future__ import annotations

import pytest
import torch

from r1lite.config import PRESETS, R1Config
from r1lite.model import R1Model
from r1lite.planner import count


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None}, {"attention_bias": True}, {"n_shared_experts": 0}],
)
def test_parameters_equal_the_built_model(name: str, changes: dict[str, int]) -> None:
    config = R1Config.preset(name).with_(**changes)
    with torch.device("meta"):
        model = R1Model(config)
    built = sum(p.numel() for p in model.parameters())
    assert sum(count.parameters(config).values()) == built


def test_tied_embeddings_are_counted_once() -> None:
    config = R1Config.preset("nano").with_(tie_word_embeddings=True)
    built = sum(p.numel() for p in R1Model(config).parameters())
    assert sum(count.parameters(config).values()) == built


def test_v3_as_published() -> None:
    config = R1Config.preset("v3")
    found = count.parameters(config)
    assert sum(found.values()) - found["MTP"] == 671_026_404_352
    assert round(count.active_parameters(config) / 1e9, 2) == 37.55


def test_flops_by_hand() -> None:
    """One dense layer, counted product by product for a sequence of one token."""
    config = R1Config.preset("nano").with_(
        num_hidden_layers=1, first_k_dense_replace=1, num_nextn_predict_layers=0
    )
    products = [
        (96, 4 * 48),
        (96, 64),
        (48, 4 * 64),
        (128, 96),
        (96, 256),
        (96, 256),
        (256, 96),
        (96, 1024),
    ]
    by_hand = sum(2 * a * b for a, b in products) + 2 * 4 * (48 + 32)
    norms = 2 * (3 * 96 + 48)  # counted as weights though they are no products
    assert count.forward_flops(config, 1) == by_hand + norms
    assert count.training_flops(config, 1) == 3 * count.forward_flops(config, 1)


def test_longer_sequences_cost_attention_only() -> None:
    config = R1Config.preset("v3")
    short, long = (count.forward_flops(config, n) for n in (1, 4097))
    per_token = 2 * 61 * 128 * (192 + 128)
    assert long - short == pytest.approx(per_token * 2048)
