"""R1-lite against transformers: equal logits, equal gradients, both ways."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.models import TINY, tiny_model, token_ids

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.hub import from_pretrained, save_pretrained
from r1lite.hub.layout import hf_name
from r1lite.model import R1Model

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "query latent": {"q_lora_rank": 14, "attention_bias": True},
    "groups": {**GROUPS, "routed_scaling_factor": 2.5},
    "two in a group": {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 2},
    "no renormalisation": {"norm_topk_prob": False, "routed_scaling_factor": 1.7},
    "no shared expert": {"n_shared_experts": 0, "first_k_dense_replace": 0},
    "three shared experts": {"n_shared_experts": 3, "num_hidden_layers": 3},
    "all dense": {"first_k_dense_replace": 2, "intermediate_size": 72},
    "tied": {"tie_word_embeddings": True, "hidden_size": 48, "vocab_size": 50},
    "halves rope": {"rope_interleave": False, "rope_theta": 500.0},
    "yarn": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn mscales": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn bare": {"rope_scaling": YARN, "rope_interleave": False},
    "yarn betas": {
        "rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False},
        "max_position_embeddings": 128,
        "qk_rope_head_dim": 16,
    },
    "wide values": {"v_head_dim": 20, "qk_nope_head_dim": 6, "kv_lora_rank": 9},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "many experts": {
        "n_routed_experts": 12,
        "moe_intermediate_size": 5,
        "num_experts_per_tok": 5,
    },
    "large epsilon": {"rms_norm_eps": 0.05, "q_lora_rank": 14},
    "small init": {"initializer_range": 0.04, "attention_dropout": 0.1},
    "special ids": {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 5},
    "with MTP": {"num_nextn_predict_layers": 1},
    "softmax": SOFTMAX,
    "softmax groups": {**SOFTMAX, **GROUPS, "topk_method": "group_limited_greedy"},
    "V2": {**SOFTMAX, "q_lora_rank": 14, "routed_scaling_factor": 16.0},
    "V2 yarn": {**SOFTMAX, "rope_scaling": {**YARN, "mscale_all_dim": 0.707}},
}
every_config = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)


def saved(model: R1Model, folder: Path, **options: Any) -> transformers.PreTrainedModel:
    """Save ours, load theirs; eager, since grouped_mm wants widths in fours."""
    save_pretrained(model, folder, **options)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, experts_implementation="eager"
    ).eval()


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.abs().max() > 0.05  # else equal zeros would pass
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_configs_cover_every_field() -> None:
    only_one_value = {"hidden_act"}
    base = R1Config.from_dict(TINY).to_dict()
    for field in fields(R1Config):
        others = [c[field.name] for c in CONFIGS.values() if field.name in c]
        varied = any(value != base[field.name] for value in others)
        assert varied != (field.name in only_one_value), field.name


@every_config
def test_same_logits_in_both_directions(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = tiny_model(**changes)
    theirs = saved(ours, tmp_path / "ours")
    ids = token_ids(2, 40, ours.config.vocab_size)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert_equal(ours(ids).logits, expected)
        theirs.save_pretrained(tmp_path / "theirs")
        assert_equal(from_pretrained(tmp_path / "theirs")(ids).logits, expected)


@every_config
def test_same_gradient_for_every_parameter(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ours = tiny_model(**{**changes, "num_nextn_predict_layers": 0})
    theirs = saved(ours, tmp_path)
    ids = token_ids(2, 40, ours.config.vocab_size)
    direction = torch.randn(2, 40, ours.config.vocab_size)
    (ours(ids).logits * direction).sum().backward()
    (theirs(ids).logits * direction).sum().backward()
    names = {hf_name(n, ours.config): p for n, p in ours.named_parameters()}
    reference = {n: p for n, p in theirs.named_parameters() if p.numel()}
    assert names.keys() == reference.keys()
    for name, parameter in names.items():
        want = reference[name].grad
        assert parameter.grad is not None and want is not None, name
        assert want.norm() > 0, name
        error = (parameter.grad - want).norm() / want.norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_left_padded_batch_gives_the_same_logits(tmp_path: Path) -> None:
    ours = tiny_model(**GROUPS)
    theirs = saved(ours, tmp_path)
    ids, mask = token_ids(3, 12), torch.ones(3, 12, dtype=torch.int64)
    mask[0, :5] = 0
    mask[1, :1] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        got = ours(ids, attention_mask=mask).logits
    assert_equal(got[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("fused", [False, True], ids=["per expert", "fused"])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_their_shards_and_expert_layouts_load(
    fused: bool, shard: str, tmp_path: Path
) -> None:
    theirs = saved(tiny_model(), tmp_path / "ours", max_shard_size=20_000)
    theirs.save_pretrained(
        tmp_path / "theirs", max_shard_size=shard, save_original_format=not fused
    )
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "20KB")
    ids = token_ids(2, 9)
    with torch.no_grad():
        got = from_pretrained(tmp_path / "theirs")(ids).logits
        assert_equal(got, theirs(ids).logits)


def test_bfloat16_survives_the_round_trip(tmp_path: Path) -> None:
    ours = tiny_model().to(torch.bfloat16)
    theirs = saved(ours, tmp_path)
    ids = token_ids(2, 9)
    assert theirs.dtype == torch.bfloat16
    router = "layers.1.mlp.gate.e_score_correction_bias"
    bias = theirs.model.state_dict()[router]
    assert bias.dtype == torch.float32
    assert torch.equal(bias, ours.state_dict()[router])
    with torch.no_grad():
        got = ours(ids).logits.float()
        torch.testing.assert_close(got, theirs(ids).logits.float(), atol=0.1, rtol=0.1)
        again = from_pretrained(tmp_path)(ids).logits.float()
    assert torch.equal(again, got)


def test_mtp_matches_theirs(tmp_path: Path) -> None:
    from transformers.modeling_layers import MtpModel

    # their regular expression finds MTP weights only under the release's id
    ours = tiny_model(
        num_nextn_predict_layers=1,
        num_hidden_layers=61,
        first_k_dense_replace=61,
        num_attention_heads=1,
        initializer_range=0.05,
    )
    theirs = saved(ours, tmp_path)
    their_mtp = MtpModel.from_pretrained(theirs).eval()
    ids = token_ids(2, 7)
    with torch.no_grad():
        hidden = ours(ids).hidden
        states = their_mtp.forward_layer(
            0,
            hidden[:, :-1],
            torch.arange(6).unsqueeze(0),
            None,
            input_ids=ids[:, 1:],
        )
        assert_equal(ours.mtp_logits(ids, hidden), theirs.lm_head(states))


def test_a_router_that_transformers_lacks_is_refused_there(tmp_path: Path) -> None:
    ours = tiny_model(scoring_func="softmax", topk_method="greedy")
    assert ours.config.norm_topk_prob  # V2's class never renormalises
    save_pretrained(ours, tmp_path)
    with pytest.raises(ValueError, match="r1lite"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    ids = token_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path)(ids).logits, ours(ids).logits)


def test_other_models_are_refused(tmp_path: Path) -> None:
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(R1Error, match="model_type 'llama'"):
        from_pretrained(tmp_path)
