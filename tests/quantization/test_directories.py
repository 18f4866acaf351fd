"""Quantised directories: what is on disk, and what comes back from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import tiny_model, token_ids
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.hub import from_pretrained, save_pretrained
from r1lite.model import R1Model
from r1lite.moe.balance import routers
from r1lite.quantization import quantize_
from r1lite.quantization.calibrate import calibrate
from r1lite.quantization.schemes import NAMES
from r1lite.quantization.walk import model_bytes, quant_weights

EVEN: dict[str, Any] = {"kv_lora_rank": 16, "v_head_dim": 16, "intermediate_size": 48}
WEIGHTS = "model.safetensors"


def assert_same(got: R1Model, want: R1Model) -> None:
    mine, theirs = got.state_dict(), want.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.float(), theirs[name].float()), name
    ids = token_ids(2, 7)
    with torch.no_grad():
        assert torch.equal(got(ids).logits, want(ids).logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [10**9, 8000], ids=["one file", "shards"])
def test_every_code_comes_back(name: str, limit: int, tmp_path: Path) -> None:
    model = tiny_model(num_nextn_predict_layers=1, **EVEN)
    quantize_(model, name)
    save_pretrained(model, tmp_path / "out", max_shard_size=limit)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) == 1) == (limit > 10**6)
    again = from_pretrained(tmp_path / "out")
    assert_same(again, model)
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    save_pretrained(again, tmp_path / "twice", max_shard_size=limit)
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "q_lora_rank": 16},
        {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
        {"n_shared_experts": 0},
    ],
    ids=["tied", "bias", "v2", "no shared expert"],
)
@pytest.mark.parametrize("name", ["int4-g32-asym", "fp8-block"])
def test_every_kind_of_model(
    changes: dict[str, Any], name: str, tmp_path: Path
) -> None:
    model = tiny_model(**EVEN, **changes)
    if "scoring_func" in changes:  # V2 has no such bias, and its files none
        routers(model)[0].e_score_correction_bias.zero_()
    quantize_(model, name, keep=())
    save_pretrained(model, tmp_path)
    assert_same(from_pretrained(tmp_path), model)


def test_scaled_inputs_and_mixed_schemes_come_back(tmp_path: Path) -> None:
    for name in ("int4-g32", "fp8-block"):
        model = tiny_model(**EVEN)
        found = calibrate(model, [token_ids(4, 20)])
        quantize_(model, name, method="awq", calibration=found)
        save_pretrained(model, tmp_path / name)
        assert_same(from_pretrained(tmp_path / name), model)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["quantization_config"]["rounding"] == "awq"
    model = tiny_model(**EVEN)
    experts = "layers.1.mlp.experts."
    mixed = {experts + "gate_up_proj": "int4-g32", experts + "down_proj": "fp8-block"}
    quantize_(model, {**mixed, "layers.0.self_attn.o_proj": "int8-dynamic"})
    save_pretrained(model, tmp_path / "mixed")
    assert_same(from_pretrained(tmp_path / "mixed"), model)


@pytest.mark.parametrize(
    ("name", "most"),
    [("int8", 0.27), ("int4-g32", 0.16), ("fp8-block", 0.27), ("nf4-g32", 0.16)],
)
def test_really_smaller_on_disk_and_in_memory(
    name: str, most: float, tmp_path: Path
) -> None:
    """Beside the float32 model, embedding and head aside; 4 bits would be 0.125."""
    wide = {"hidden_size": 256, "moe_intermediate_size": 128, "vocab_size": 16}
    model = tiny_model(**EVEN, **wide)
    save_pretrained(model, tmp_path / "float")
    before = model_bytes(model)
    quantize_(model, name)
    save_pretrained(model, tmp_path / "out")
    sizes = [(tmp_path / d / WEIGHTS).stat().st_size for d in ("float", "out")]
    assert sizes[1] < (most + 0.05) * sizes[0]
    again = from_pretrained(tmp_path / "out")
    assert model_bytes(again) == model_bytes(model) < (most + 0.05) * before


def test_no_float_copy_is_made_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass: every tensor is read once, nothing is decoded or encoded."""
    from r1lite.quantization import coding, load, weight

    model = tiny_model(**EVEN)
    quantize_(model, "int4-g32")
    save_pretrained(model, tmp_path)
    read: list[str] = []
    put = load._put

    def counted(place: Tensor | None, name: str, *rest: Any) -> None:
        read.append(name)
        put(place, name, *rest)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a weight was decoded while loading")

    monkeypatch.setattr(load, "_put", counted)
    monkeypatch.setattr(weight, "decode", forbidden)
    monkeypatch.setattr(coding, "encode", forbidden)
    from_pretrained(tmp_path)
    assert sorted(read) == sorted(load_file(tmp_path / WEIGHTS))


# ------------------------------------------------------------- DeepSeek's layout


def test_fp8_is_laid_out_as_in_the_release(tmp_path: Path) -> None:
    """Sizes that 128 does not divide: ragged tails, gate and up apart."""
    wide = {"hidden_size": 160, "moe_intermediate_size": 144, "intermediate_size": 300}
    model = tiny_model(num_nextn_predict_layers=1, **wide)
    quantize_(model, "fp8-block")
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    tensors = load_file(tmp_path / WEIGHTS)
    up = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert tensors[up].shape == (144, 160) and tensors[up].dtype == torch.float8_e4m3fn
    assert tensors[up + "_scale_inv"].shape == (2, 2)
    dense = "model.layers.0.mlp.down_proj.weight"
    assert tensors[dense + "_scale_inv"].shape == (2, 3)
    assert "model.layers.2.mlp.experts.7.down_proj.weight_scale_inv" in tensors
    for name in ("model.layers.1.mlp.gate.weight", "model.embed_tokens.weight"):
        assert tensors[name].dtype == torch.float32
        assert name + "_scale_inv" not in tensors
    assert_same(from_pretrained(tmp_path), model)
    # As the release's own inference code reads them: weight * scale of its block.
    weight, inverse = tensors[up].float(), tensors[up + "_scale_inv"]
    wide_scale = inverse.repeat_interleave(128, 0).repeat_interleave(128, 1)
    held = quant_weights(model)["layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(weight * wide_scale[:144, :160], held.dequantise(3)[144:])


def test_a_release_without_mtp_loads(tmp_path: Path) -> None:
    model = tiny_model(num_nextn_predict_layers=1, **EVEN)
    quantize_(model, "fp8-block")
    save_pretrained(model, tmp_path)
    edit(tmp_path, lambda t: [t.pop(k) for k in list(t) if ".layers.2." in k])
    assert from_pretrained(tmp_path).mtp is None


# --------------------------------------------------------------------- bad input


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] = {**values["quantization_config"], **changes}
    file.write_text(json.dumps(values))


O_PROJ = "model.layers.0.self_attn.o_proj."
CODES = O_PROJ + "codes"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "codes gone": (
        "int4-g32",
        lambda f: edit(f, lambda t: t.pop(CODES)),
        "o_proj.codes are missing",
    ),
    "scales gone": (
        "fp8-block",
        lambda f: edit(f, lambda t: t.pop(UP + "_scale_inv")),
        "up_proj.weight_scale_inv are missing",
    ),
    "no scales left": (
        "fp8-block",
        lambda f: edit(f, lambda t: t.pop(O_PROJ + "weight_scale_inv")),
        "float8_e4m3fn, config.json says",
    ),
    "wrong width": (
        "int4-g32",
        lambda f: edit(f, lambda t: t.update({CODES: t[CODES][:, 1:].clone()})),
        "do not belong together",
    ),
    "codes of another kind": (
        "fp8-block",
        lambda f: edit(f, lambda t: t.update({UP: t[UP].float()})),
        "float32, config.json says .* torch.float8_e4m3fn",
    ),
    "NaN in scales": (
        "int8",
        lambda f: edit(f, lambda t: t[O_PROJ + "scales"].fill_(float("nan"))),
        "o_proj.scales holds NaN or infinity",
    ),
    "foreign tensor": (
        "int8",
        lambda f: edit(f, lambda t: t.update(odd=torch.ones(2))),
        "holds odd, which this config has no place for",
    ),
    "another method": (
        "int8",
        lambda f: configure(f, quant_method="gptq"),
        "quantization_config is set",
    ),
    "blocks of 64": (
        "fp8-block",
        lambda f: configure(f, weight_block_size=[64, 64]),
        "fp8 e4m3 in blocks of 128 x 128",
    ),
    "unknown scheme": (
        "int8",
        lambda f: configure(f, weights={"layers.0.self_attn.o_proj": "int3"}),
        "'int3' is unknown",
    ),
    "unknown weight": (
        "int8",
        lambda f: configure(f, weights={"layers.7.self_attn.o_proj": "int8"}),
        "names 'layers.7.self_attn.o_proj', which this model does not have",
    ),
    "no weights": (
        "int8",
        lambda f: configure(f, weights={}),
        "quantization_config names no weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_directory_is_one_clear_line(
    name: str, damage: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    model = tiny_model(**EVEN)
    quantize_(model, name)
    save_pretrained(model, tmp_path)
    from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(R1Error, match=says) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_loaded_weights_decode_as_themselves() -> None:
    """MLA decodes with a float copy of kv_b_proj: it must not be the old one's."""
    one, two = (tiny_model(**EVEN) for _ in range(2))
    with torch.no_grad():
        for p in two.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for model in (one, two):
        quantize_(model, "int8")
    ids = token_ids(1, 6)

    def decoded(model: R1Model) -> Tensor:
        cache = model.new_cache(1, 8)
        with torch.no_grad():
            model(ids[:, :5], cache=cache)
            return model(ids[:, 5:], cache=cache).logits

    before = decoded(one)
    one.load_state_dict(two.state_dict())
    assert torch.equal(decoded(one), decoded(two))
    assert not torch.equal(decoded(one), before)
