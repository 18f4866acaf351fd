"""`quantize_`: what it covers, what it refuses, and models that still talk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.models import tiny_model, token_ids
from torch import nn

from r1lite.errors import R1Error
from r1lite.generation import generate
from r1lite.model import R1Model
from r1lite.quantization import quantize_
from r1lite.quantization.schemes import NAMES
from r1lite.quantization.walk import float_weights, model_bytes, quant_weights
from r1lite.quantization.weight import QuantExperts, QuantLinear, QuantWeight

# Sizes that every scheme's groups can divide.
EVEN: dict[str, Any] = {"kv_lora_rank": 16, "v_head_dim": 16, "intermediate_size": 48}
NEAR = {"int8": 0.02, "int8-dynamic": 0.03, "int8-g32": 0.02, "int8-g32-asym": 0.02}


@pytest.fixture
def model() -> R1Model:
    return tiny_model(num_nextn_predict_layers=1, **EVEN)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_covers_the_experts_and_predicts_alike(
    name: str, model: R1Model
) -> None:
    ids = token_ids(2, 9)
    whole = sum(p.numel() for p in model.parameters())
    stacks = [w.tensor for w in float_weights(model) if ".experts." in w.name]
    stacked_before = sum(s.numel() for s in stacks)
    with torch.no_grad():
        want = model(ids).logits
        report = quantize_(model, name)
        got = model(ids).logits
    assert float((got - want).norm() / want.norm()) < NEAR.get(name, 0.5)
    assert not torch.equal(got, want)
    left = {w.name.rpartition(".")[2] for w in float_weights(model)}
    assert left == {"lm_head", "eh_proj"}
    assert sum(e.parameters for e in report.entries) == whole
    stacked = [e for e in report.quantised if ".experts." in e.name]
    assert sum(e.parameters for e in stacked) == stacked_before
    assert report.routed_coverage == 1 and report.coverage > 0.75
    assert f"{report.coverage:.1%} of the parameters" in str(report)
    assert "100.0% of the routed experts" in str(report)


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_the_report_says(name: str, model: R1Model) -> None:
    before, buffers = model_bytes(model), sum(b.nbytes for b in model.buffers())
    report = quantize_(model, name)
    assert report.bytes_before == before - buffers
    after = model_bytes(model) - buffers
    assert after == report.bytes_after < 0.55 * before
    codes = sum(b.nbytes for w in quant_weights(model).values() for b in w.buffers())
    count = sum(e.parameters for e in report.quantised)
    assert report.bits_per_weight == pytest.approx(8 * codes / count)


def test_bits_of_a_weight_by_hand() -> None:
    wide = tiny_model(hidden_size=64, moe_intermediate_size=32, **EVEN)
    entries = {e.name: e for e in quantize_(wide, "int4-g32-asym").quantised}
    gate_up = entries["layers.1.mlp.experts.gate_up_proj"]
    assert gate_up.parameters == 8 * 64 * 64
    assert gate_up.bytes_after == 8 * 64 * (32 + 2 * (2 + 2))
    assert gate_up.bytes_before == 4 * gate_up.parameters


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "int4-g32", "fp8-block"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_still_generates(name: str, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied, **EVEN)
    quantize_(model, name)
    prompts = token_ids(2, 6)
    made = generate(model, prompts, max_new_tokens=8, stop_ids=())
    assert [len(r) for r in made] == [8, 8]
    for prompt, new in zip(prompts.tolist(), made, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + new])).logits[0, 5:-1]
        chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
        # Decoding from the cache is the same model; dynamic int8 may break a tie.
        assert bool((chosen >= logits.amax(-1) - 0.05).all())


def test_another_dtype_changes_products_not_codes(model: R1Model) -> None:
    quantize_(model, "fp8-block")
    before = {n: b.clone() for n, b in model.named_buffers() if "codes" in n}
    half = copy.deepcopy(model).to(torch.bfloat16)
    for name, buffer in half.named_buffers():
        if name.endswith("codes"):
            assert buffer.dtype == torch.float8_e4m3fn
            assert torch.equal(buffer.float(), before[name].float())
        if name.endswith("scales"):
            assert buffer.dtype == torch.float32
    with torch.no_grad():
        out = half(token_ids(1, 4)).logits
    assert out.dtype == torch.bfloat16 and bool(out.isfinite().all())


def test_a_bias_and_a_kept_name_stay(model: R1Model) -> None:
    biased = tiny_model(attention_bias=True, q_lora_rank=16, **EVEN)
    old = biased.layers[0].self_attn.o_proj.bias.clone()
    report = quantize_(biased, "int8", keep=("lm_head", "layers.1.self_attn.o_proj"))
    kept = {e.name: e.note for e in report.left_out}
    assert kept["layers.1.self_attn.o_proj"] == "asked to be kept"
    assert kept["layers.1.mlp.gate.weight"].startswith("router")
    first = biased.layers[0].self_attn.o_proj
    assert isinstance(first, QuantLinear) and torch.equal(first.bias, old)
    assert isinstance(biased.layers[1].self_attn.o_proj, nn.Linear)
    assert isinstance(biased.layers[1].mlp.experts, QuantExperts)


def test_experts_with_no_token_and_no_tokens_at_all(model: R1Model) -> None:
    experts = model.layers[1].mlp.experts
    rows, counts = torch.randn(3, 32), torch.tensor([0, 2, 0, 0, 0, 0, 1, 0])
    want = experts(rows, counts)
    quantize_(model, "int8")
    got = model.layers[1].mlp.experts(rows, counts)
    assert torch.allclose(want, got, atol=0.02)
    none = torch.zeros(8, dtype=torch.long)
    assert model.layers[1].mlp.experts(rows[:0], none).shape == (0, 32)


Call = dict[str, Any]
REFUSED: dict[str, tuple[Call, str]] = {
    "scheme": ({"scheme": "int3"}, "'int3' is unknown; choose int8"),
    "method": ({"scheme": "int8", "method": "best"}, "'best' is unknown; choose rtn"),
    "no data": ({"scheme": "int8", "method": "gptq"}, "gptq needs to see activations"),
    "hqq": (
        {"scheme": {"layers.0.self_attn.o_proj": "int4-g32"}, "method": "hqq"},
        "choose an asymmetric scheme",
    ),
    "name": ({"scheme": {"layers.9.x": "int8"}}, "no weight 'layers.9.x'"),
    "half": (
        {"scheme": {"layers.1.mlp.experts.down_proj": "int8"}},
        "quantised together or not at all",
    ),
    "nothing": ({"scheme": {}}, "no weight is left to quantise; shorten keep"),
    "group": ({"scheme": "int4-g32"}, "groups of 32 do not divide its 40 inputs"),
}


@pytest.mark.parametrize(("call", "says"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_changes_nothing(call: Call, says: str) -> None:
    model = tiny_model(kv_lora_rank=16, v_head_dim=16)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(R1Error, match=says) as caught:
        quantize_(model, **call)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)
    assert not any(isinstance(m, QuantWeight) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["int8", "int4-g32", "fp8-block", "nf4-g32"])
def test_one_bad_number_in_one_expert_is_named(bad: float, name: str) -> None:
    model = tiny_model(**EVEN)
    model.layers[1].mlp.experts.down_proj.data[5, 3, 2] = bad
    with pytest.raises(R1Error, match=r"layers\.1\.mlp\.experts\.down_proj: holds NaN"):
        quantize_(model, name)
    assert not any(isinstance(m, QuantWeight) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_expert_and_zero_groups_are_no_nan(name: str) -> None:
    model = tiny_model(**EVEN)
    model.layers[1].mlp.experts.down_proj.data[2] = 0
    model.layers[0].self_attn.o_proj.weight.data[:, :32] = 0
    quantize_(model, name)
    assert (
        quant_weights(model)["layers.1.mlp.experts.down_proj"].dequantise(2).eq(0).all()
    )
    with torch.no_grad():
        assert bool(model(token_ids(1, 6)).logits.isfinite().all())


def test_quantising_twice_is_refused(model: R1Model) -> None:
    quantize_(model, "int8")
    with pytest.raises(R1Error, match="is quantised already; load the float model"):
        quantize_(model, "int4-g32")
