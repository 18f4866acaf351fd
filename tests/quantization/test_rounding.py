"""Better rounding: GPTQ, AWQ and HQQ against rounding to nearest, on other data."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_model, token_ids
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.quantization import quantize_
from r1lite.quantization.awq import awq, input_scale
from r1lite.quantization.calibrate import calibrate, squared_error
from r1lite.quantization.coding import decode, encode
from r1lite.quantization.gptq import gptq, upper_factor
from r1lite.quantization.hqq import hqq, shrink
from r1lite.quantization.rounding import rounded
from r1lite.quantization.schemes import scheme_of

INT4, ASYM = scheme_of("int4-g32"), scheme_of("int4-g32-asym")


def inputs(rows: int, seed: int) -> Tensor:
    """Correlated, as activations are, a few channels loud: (rows, 64)."""
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(9))
    loud = torch.ones(64)
    loud[[3, 40]] = 15
    fresh = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))
    return (fresh + 0.5 * fresh[:, :8] @ mixing[:8]) * loud


def held_out_error(w: Tensor, restored: Tensor) -> float:
    x = inputs(400, seed=2)
    return float((x @ (w - restored).t()).norm() / (x @ w.t()).norm())


@pytest.fixture
def hessian() -> Tensor:
    x = inputs(600, seed=1)
    return x.t() @ x


@pytest.mark.parametrize("scheme", [INT4, ASYM], ids=["symmetric", "asymmetric"])
def test_gptq_is_better_on_tokens_it_has_not_seen(scheme, hessian: Tensor) -> None:  # type: ignore[no-untyped-def]
    w = torch.randn(48, 64)
    plain = held_out_error(w, decode(encode(w, scheme), scheme))
    assert held_out_error(w, decode(gptq(w, hessian, scheme), scheme)) < 0.75 * plain


@pytest.mark.parametrize("name", ["int4-g32", "nf4-g32"])
def test_awq_is_better_on_tokens_it_has_not_seen(name: str, hessian: Tensor) -> None:
    scheme, w = scheme_of(name), torch.randn(48, 64)
    codes, factor = awq(w, hessian, scheme)
    plain = held_out_error(w, decode(encode(w, scheme), scheme))
    assert held_out_error(w, decode(codes, scheme) * factor.float()) < 0.8 * plain


def test_hqq_lowers_the_error_of_weights_without_data() -> None:
    w = torch.randn(64, 128)
    w[torch.rand_like(w) < 0.02] *= 6
    plain = (decode(encode(w, ASYM), ASYM) - w).abs().mean()
    assert (decode(hqq(w, ASYM), ASYM) - w).abs().mean() < 0.99 * plain


def test_gptq_column_by_column_by_hand() -> None:
    """Two inputs that always come together: the second takes over the error."""
    w = torch.tensor([[0.4, 0.4] + [0.0] * 13 + [7.0]])
    hessian = torch.eye(16)
    hessian[0, 1] = hessian[1, 0] = 0.99
    scheme = scheme_of("int4-g16")
    made = decode(gptq(w, hessian, scheme), scheme)
    assert decode(encode(w, scheme), scheme)[0, :2].tolist() == [0, 0]
    assert made[0, :2].tolist() == [0, 1]  # 0.4 rounds to 0; 0.4 + 0.39 to 1


def test_the_factor_is_that_of_the_damped_inverse(hessian: Tensor) -> None:
    factor = upper_factor(hessian[None], 0.01)[0].double()
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(
        64
    )
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(
        factor.t() @ factor @ damped, torch.eye(64).double(), atol=1e-3
    )
    assert bool(upper_factor(torch.zeros(1, 8, 8), 0.01).isfinite().all())


def test_no_rounding_is_ever_worse_than_nearest_on_what_it_saw(hessian: Tensor) -> None:
    for seed in range(5):
        w = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(seed))
        h = hessian.expand(3, -1, -1)
        plain = squared_error(w, decode(encode(w, INT4), INT4), h)
        assert bool(
            (squared_error(w, decode(gptq(w, h, INT4), INT4), h) <= plain).all()
        )
        codes, factor = awq(w, h, INT4)
        made = decode(codes, INT4) * factor.float().unsqueeze(-2)
        assert bool((squared_error(w, made, h) <= plain * 1.0001).all())


def test_an_error_is_shrunk_by_the_right_amount() -> None:
    off = torch.tensor([0.0, 0.01, -0.01, 4.0, -4.0])
    found = shrink(off, 0.7, 10.0)
    cut = 4.0**-0.3 / 10
    assert torch.allclose(found, torch.tensor([0.0, 0, 0, 4 - cut, cut - 4]))


def test_a_scale_of_inputs_is_centred_and_silent_ones_stay_finite() -> None:
    loud = torch.tensor([4.0, 1.0, 0.25, 0.0])
    for alpha in (0.0, 0.5, 1.0):
        factor = input_scale(loud, alpha).float()
        assert bool(factor.isfinite().all()) and bool((factor.diff() >= 0).all())
        assert float(factor.max() * factor.min()) == pytest.approx(1, rel=0.02)
    assert input_scale(torch.zeros(4), 0.5).tolist() == [1, 1, 1, 1]


# ------------------------------------------------------------------ calibration

EVEN = {"kv_lora_rank": 16, "v_head_dim": 16, "intermediate_size": 48}


def starved() -> R1Model:
    """A model whose router never sends a token to expert 5."""
    model = tiny_model(num_nextn_predict_layers=1, **EVEN)
    model.layers[1].mlp.gate.e_score_correction_bias[5] = -100
    return model


def test_calibration_reaches_every_expert() -> None:
    model = starved()
    found = calibrate(model, [token_ids(4, 30), token_ids(2, 20)], least=8)
    name = "layers.1.mlp.experts"
    assert int(found.routed[name].sum()) == 2 * 160
    assert found.routed[name][5] == 0 and 5 in found.lent[name]
    for leaf in ("gate_up_proj", "down_proj"):
        trace = found.hessians[f"{name}.{leaf}"].diagonal(dim1=-2, dim2=-1).sum(-1)
        assert bool((trace > 0).all()), "an expert saw nothing"
    report = quantize_(model, "int4-g32", method="gptq", calibration=found)
    (entry,) = [e for e in report.entries if e.name == f"{name}.down_proj"]
    assert "saw all of the layer's: experts" in entry.note and "5" in entry.note


def test_statistics_are_sums_over_what_a_weight_saw() -> None:
    model = tiny_model(**EVEN)
    seen: list[Tensor] = []
    layer = model.layers[0].self_attn.o_proj
    handle = layer.register_forward_pre_hook(
        lambda _, a: seen.append(a[0].flatten(0, 1))
    )
    batches = [token_ids(2, 7), token_ids(1, 5)]
    with torch.no_grad():
        for ids in batches:
            model(ids)
    handle.remove()
    found = calibrate(model, batches)
    want = sum(x.t() @ x for x in seen)
    assert torch.allclose(found.hessians["layers.0.self_attn.o_proj"], want, rtol=1e-4)
    assert not model.layers[0].self_attn.o_proj._forward_pre_hooks
    whole = calibrate(model, [torch.cat([batches[0][:1]]), batches[0][1:], batches[1]])
    for name, h in found.hessians.items():
        assert torch.allclose(h, whole.hessians[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("method", "share"), [("gptq", 0.9), ("awq", 1.0)])
def test_a_whole_model_predicts_better_on_other_tokens(
    method: str, share: float
) -> None:
    off = {}
    for how in ("rtn", method):
        torch.manual_seed(1)
        model = tiny_model(hidden_size=64, moe_intermediate_size=32, **EVEN)
        torch.manual_seed(2)
        batches, other = [token_ids(8, 60) for _ in range(4)], token_ids(8, 60)
        found = calibrate(model, batches)
        with torch.no_grad():
            want = model(other).logits.log_softmax(-1)
            quantize_(model, "int4-g32", method=how, calibration=found)
            got = model(other).logits.log_softmax(-1)
        off[how] = float((want.exp() * (want - got)).sum(-1).mean())
    assert off[method] < share * off["rtn"]


def test_what_calibration_refuses() -> None:
    model = tiny_model(**EVEN)
    with pytest.raises(R1Error, match="no tokens; give at least one batch"):
        calibrate(model, [])
    other = calibrate(tiny_model(**{**EVEN, "hidden_size": 64}), [token_ids(1, 8)])
    with pytest.raises(R1Error, match="calibrate this very model"):
        quantize_(model, "int4-g32", method="gptq", calibration=other)
    quantize_(model, "int8")
    with pytest.raises(R1Error, match="quantised already; calibrate the float model"):
        calibrate(model, [token_ids(1, 8)])


def test_a_weight_nobody_saw_is_rounded_to_nearest_and_says_so() -> None:
    model, w = tiny_model(**EVEN), torch.randn(8, 32)
    found = calibrate(model, [token_ids(1, 8)])
    codes, factor, note = rounded(w, INT4, 1, "elsewhere", "gptq", found)
    assert "not seen in calibration" in note and factor is None
    assert torch.equal(codes.codes, encode(w, INT4).codes)


@pytest.mark.parametrize("name", ["nf4-g32", "fp8-block"])
def test_gptq_needs_whole_numbers(name: str) -> None:
    with pytest.raises(R1Error, match="choose an int scheme or rtn"):
        gptq(torch.randn(4, 32), torch.eye(32), scheme_of(name))
