"""Training for int4, sensitivity, and mixed precision under a budget of bytes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_model, token_ids

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.moe.experts import Experts
from r1lite.quantization import quantize_
from r1lite.quantization.calibrate import calibrate
from r1lite.quantization.qat import QatExperts, QatLinear, fake_quantise, qat_
from r1lite.quantization.schemes import scheme_of
from r1lite.quantization.sensitivity import (
    Cost,
    fit_budget,
    output_errors,
    sensitivity,
    stored_bytes,
)
from r1lite.quantization.walk import float_weights, quant_weights

EVEN = {"kv_lora_rank": 16, "v_head_dim": 16, "intermediate_size": 48}


def test_the_gradient_goes_straight_through() -> None:
    w = torch.randn(6, 32, requires_grad=True)
    rounded = fake_quantise(w, scheme_of("int4-g32"))
    assert not torch.equal(rounded, w) and rounded.unique().numel() <= 6 * 15
    weight = torch.randn(6, 32)
    (rounded * weight).sum().backward()
    assert w.grad is not None and torch.equal(w.grad, weight)


@pytest.mark.parametrize("name", ["int4-g32", "int8-dynamic", "fp8-block", "nf4-g32"])
def test_what_trained_is_what_is_stored(name: str) -> None:
    model, ids = qat_(tiny_model(**EVEN), name), token_ids(2, 8)
    assert isinstance(model.layers[1].mlp.experts, QatExperts)
    assert isinstance(model.layers[0].self_attn.o_proj, QatLinear)
    assert not isinstance(model.lm_head, QatLinear)
    with torch.no_grad():
        trained = model(ids).logits
        quantize_(model, name)
        stored = model(ids).logits
    # Tokens that lie between two codes may be rounded either way.
    off = 0.01 if name == "int8-dynamic" else 1e-4
    assert float((trained - stored).norm() / stored.norm()) < off


def test_parameters_stay_and_training_can_end() -> None:
    model, ids = tiny_model(**EVEN), token_ids(2, 8)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        want = model(ids).logits
    qat_(model, "int4-g32")
    model(ids).logits.sum().backward()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    experts = model.layers[1].mlp.experts
    assert experts.gate_up_proj.grad is not None
    assert float(experts.gate_up_proj.grad.abs().sum()) > 0
    qat_(model, None)
    assert type(experts) is Experts
    with torch.no_grad():
        assert torch.equal(model(ids).logits, want)
    with pytest.raises(R1Error, match="unknown"):
        qat_(model, "int2")


def test_training_with_rounding_beats_rounding_afterwards() -> None:
    """A memorised text: what int4 forgets, ten steps with rounding bring back."""
    ids = token_ids(8, 24)

    def loss_of(model: R1Model) -> torch.Tensor:
        logits = model(ids[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def train(model: R1Model, steps: int) -> R1Model:
        optim = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            optim.zero_grad()
            loss_of(model).backward()
            optim.step()
        return model

    model = train(tiny_model(**EVEN), 60)
    same = train(copy.deepcopy(model), 20)
    aware = qat_(train(qat_(model, "int4-g32"), 20), None)
    for one in (same, aware):
        quantize_(one, "int4-g32")
    with torch.no_grad():
        assert float(loss_of(aware)) < 0.8 * float(loss_of(same))


# ------------------------------------------------------------------- sensitivity


def test_errors_of_every_weight_and_expert() -> None:
    model = tiny_model(**EVEN)
    found = calibrate(model, [token_ids(4, 30)], least=8)
    coarse, fine = (output_errors(model, found, s) for s in ("int4-g32", "int8-g32"))
    assert coarse.keys() == {w.name for w in float_weights(model)}
    for name, error in coarse.items():
        assert bool((error > 4 * fine[name]).all()), name
        assert bool((error < 0.5).all())
    assert coarse["layers.1.mlp.experts.down_proj"].shape == (8,)
    del found.hessians["layers.0.self_attn.o_proj"]
    left = output_errors(model, found, "int4-g32")
    assert left.keys() == coarse.keys() - {"layers.0.self_attn.o_proj"}


def test_sensitivity_leaves_the_model_alone_and_counts_bytes() -> None:
    model, ids = tiny_model(**EVEN), token_ids(2, 12)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    costs = sensitivity(model, [ids], ("int4-g32", "int8-g32"))
    for name, tensor in model.state_dict().items():
        if not name.endswith("counts"):
            assert torch.equal(tensor, before[name])
    assert {len(c.names) for c in costs} == {1, 2}  # an MoE's two stacks together
    by_unit = {(c.names, c.scheme): c for c in costs}
    for names in {c.names for c in costs}:
        small, big = by_unit[names, "int4-g32"], by_unit[names, "int8-g32"]
        assert 0 <= big.divergence < small.divergence and small.bytes < big.bytes
    quantize_(model, "int4-g32")
    held = quant_weights(model)
    for cost in costs:
        if cost.scheme == "int4-g32":
            stored = [b for n in cost.names for b in held[n].buffers()]
            assert cost.bytes == sum(b.nbytes for b in stored)


def test_a_budget_buys_where_it_helps_most() -> None:
    costs = [
        Cost(("a",), "int4-g32", 100, 0.5),
        Cost(("a",), "int8", 200, 0.1),
        Cost(("b",), "int4-g32", 100, 0.3),
        Cost(("b",), "int8", 200, 0.2),
        Cost(("c", "d"), "int4-g32", 50, 0.01),
        Cost(("c", "d"), "int8", 100, 0.0),
    ]
    small = {"a": "int4-g32", "b": "int4-g32", "c": "int4-g32", "d": "int4-g32"}
    assert fit_budget(costs, 250) == small
    assert fit_budget(costs, 350) == {**small, "a": "int8"}
    assert fit_budget(costs, 450) == {**small, "a": "int8", "b": "int8"}
    assert fit_budget(costs, 10**6) == dict.fromkeys("abcd", "int8")
    with pytest.raises(R1Error, match="the smallest schemes take 250"):
        fit_budget(costs, 249)


def test_a_mix_fits_and_beats_the_small_scheme() -> None:
    model, ids = tiny_model(**EVEN), token_ids(4, 20)
    costs = sensitivity(model, [ids], ("int4-g32", "int8-g32"))
    low, high = (
        sum(c.bytes for c in costs if c.scheme == s) for s in ("int4-g32", "int8-g32")
    )
    budget = (low + high) // 2
    off = {}
    with torch.no_grad():
        want = model(ids).logits.log_softmax(-1)
        for name, scheme in (("mix", fit_budget(costs, budget)), ("low", "int4-g32")):
            one = copy.deepcopy(model)
            report = quantize_(one, scheme)
            assert sum(e.bytes_after for e in report.quantised) <= budget
            got = one(ids).logits.log_softmax(-1)
            off[name] = float(F.kl_div(got, want, log_target=True, reduction="sum"))
    assert off["mix"] < 0.7 * off["low"]


def test_bytes_of_a_weight_by_hand() -> None:
    weight = next(w for w in float_weights(tiny_model(**EVEN)) if "o_proj" in w.name)
    rows, inputs = weight.tensor.shape
    assert stored_bytes(weight, scheme_of("int8")) == rows * (inputs + 4)
    assert stored_bytes(weight, scheme_of("int4-g32")) == rows * inputs * 9 // 16
