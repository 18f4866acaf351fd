"""The whole model: published sizes, initialisation, bad shapes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.models import TINY, tiny_config, tiny_model, token_ids

from r1lite.attention.cache import LatentCache
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.model import R1Model


def parameters(config: R1Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in R1Model(config).parameters())


def test_the_published_671b() -> None:
    config = R1Config.preset("v3")
    assert parameters(config.with_(num_nextn_predict_layers=0)) == 671_026_404_352
    cache = LatentCache(config, 1, 1, dtype=torch.bfloat16, device="meta")
    assert cache.bytes_per_token() == 70_272


def test_mtp_adds_eleven_and_a_half_billion() -> None:
    config = R1Config.preset("v3")
    more = parameters(config) - 671_026_404_352
    assert 11.4e9 < more < 11.7e9


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("nano", 1e6, 2e6), ("micro", 10e6, 21e6), ("small", 150e6, 200e6)],
)
def test_presets_have_the_sizes_the_book_says(
    name: str, low: float, high: float
) -> None:
    assert low < parameters(R1Config.preset(name)) < high


def test_first_layers_are_dense() -> None:
    model = R1Model(tiny_config(num_hidden_layers=3, first_k_dense_replace=2))
    kinds = [type(layer.mlp).__name__ for layer in model.layers]
    assert kinds == ["SwiGLU", "SwiGLU", "MoE"]


def test_output_is_what_it_says() -> None:
    model = tiny_model()
    ids = token_ids(2, 5)
    out = model(ids)
    assert out.logits.shape == (2, 5, TINY["vocab_size"])
    assert out.hidden.shape == (2, 5, TINY["hidden_size"])
    assert torch.equal(model.hidden(ids), out.hidden)
    assert torch.equal(model.lm_head(out.hidden), out.logits)


def test_initial_weights_follow_the_config_and_the_seed() -> None:
    config = tiny_config(
        initializer_range=0.006, attention_bias=True, num_nextn_predict_layers=1
    )
    torch.manual_seed(3)
    model = R1Model(config)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == 1).all(), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        else:
            sigmas = (p.std().item() / 0.006 - 1) * math.sqrt(2 * p.numel())
            assert abs(sigmas) < 4.5, f"{name}: {p.std():.4f}"
    torch.manual_seed(3)
    again = R1Model(config)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_an_untrained_model_knows_nothing() -> None:
    model = R1Model(R1Config.preset("nano"))
    logits = model(token_ids(2, 16, 1024)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.randint(0, 1024, (32,))
    )
    assert loss.item() == pytest.approx(math.log(1024), abs=0.15)


def test_tied_weights_are_one_tensor() -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    copied = copy.deepcopy(model)
    assert copied.lm_head.weight is copied.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_a_short_training_run_learns() -> None:
    model = tiny_model(num_nextn_predict_layers=0).train()
    ids = token_ids(4, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_bfloat16_follows_float32() -> None:
    model = tiny_model()
    ids = token_ids(2, 9)
    want = model(ids).logits
    model.to(torch.bfloat16)
    got = model(ids).logits
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()
    cache = model.new_cache(2, 9)
    assert cache.data[0].dtype == torch.bfloat16
    steps = [model(ids[:, t : t + 1], cache=cache).logits for t in range(9)]
    stepped = torch.cat(steps, 1).float()
    assert (stepped - want).abs().max() < 0.1 * want.abs().max()


def test_bad_shapes_are_named() -> None:
    model = tiny_model()
    ids = token_ids(2, 5)
    with pytest.raises(R1Error, match="input_ids"):
        model(ids[0])
    with pytest.raises(R1Error, match="input_ids"):
        model(ids[:, :0])
    with pytest.raises(R1Error, match="attention_mask"):
        model(ids, attention_mask=torch.ones(2, 4))
    cache = model.new_cache(2, 9)
    model(ids, cache=cache)
    with pytest.raises(R1Error, match=r"attention_mask: .* the 5 cached"):
        model(ids[:, :1], attention_mask=torch.ones(2, 1), cache=cache)
    with pytest.raises(R1Error, match="document_ids"):
        model(ids[:, :1], document_ids=ids[:, :1], cache=cache)
    with pytest.raises(R1Error, match="document_ids"):
        model(ids, document_ids=ids[:, 1:])
    for shape in ((5,), (2, 1), (1, 4), (3, 5), (1, 1, 5)):
        with pytest.raises(R1Error, match=r"position_ids: shape .* give \(2, 5\)"):
            model(ids, position_ids=torch.zeros(shape, dtype=torch.long))
    cache = model.new_cache(3, 9)
    for rows in (ids, ids[:1]):
        with pytest.raises(R1Error, match=rf"cache: .*3 rows.* {len(rows)}"):
            model(rows, cache=cache)
    assert cache.length == 0


@pytest.mark.parametrize("token", [-1, TINY["vocab_size"]])
def test_ids_outside_the_vocabulary_are_named(token: int) -> None:
    model = tiny_model()
    with pytest.raises(R1Error, match=r"input_ids: .*vocabulary of 61"):
        model(torch.tensor([[3, token]]))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("q_lora_rank", [0, -1, 1.5, "x"]),
        ("tie_word_embeddings", ["no", 1, None]),
        ("rms_norm_eps", [0, -1e-6, math.nan, "x"]),
        ("attention_dropout", [-0.1, 1.0, True]),
        ("rope_theta", [1, 0.0, math.inf, "x", None]),
        ("routed_scaling_factor", [math.nan, math.inf]),
        ("initializer_range", [0.0, math.nan]),
        ("bos_token_id", [-1, 61, 1.0]),
        ("eos_token_id", [-1, 61, [1, 2]]),
        ("pad_token_id", [-1, 61, "x"]),
    ],
)
def test_impossible_values_are_named(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(R1Error, match=rf"^model\.{field}: .*; give"):
            tiny_config(**{field: value})


def test_what_a_released_config_may_hold_is_accepted() -> None:
    made = tiny_config(rope_theta=10000, bos_token_id=None, eos_token_id=None)
    assert made.with_(eos_token_id=60, attention_dropout=0).eos_token_id == 60


def test_padding_gets_no_gradient_and_must_be_a_token() -> None:
    model = tiny_model(pad_token_id=5)
    model(torch.tensor([[5, 6, 5, 7]])).logits.square().sum().backward()
    grad = model.embed_tokens.weight.grad
    assert grad is not None
    assert grad[5].abs().sum() == 0 and grad[6].abs().sum() > 0
    with pytest.raises(R1Error, match="pad_token_id: 61 is no token"):
        tiny_config(pad_token_id=61)
