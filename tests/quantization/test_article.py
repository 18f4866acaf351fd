"""The article's two versions, as they stand, and how they fail."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.models import tiny_model
from torch import Tensor, nn

from r1lite.model import R1Model
from r1lite.quantization import quantize_
from r1lite.quantization.coding import decode, encode
from r1lite.quantization.schemes import scheme_of


class GroupQuantizer:
    """The article's class, in our words: one scale for a group of columns."""

    def __init__(self, bits: int = 8, group_size: int = 128) -> None:
        self.bits, self.group_size = bits, group_size

    def quantize(self, w: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(w)
        scale = torch.tensor(0.0)
        for start in range(0, w.shape[1], self.group_size):
            group = w[:, start : start + self.group_size]
            scale = group.abs().max() / (2 ** (self.bits - 1) - 1)
            out[:, start : start + self.group_size] = torch.round(group / scale)
        return out, scale


def loud(rows: int = 64) -> Tensor:
    """The first group is ten times as loud as the other three."""
    w = torch.randn(rows, 512)
    w[:, :128] *= 10
    return w


def relative(restored: Tensor, w: Tensor) -> float:
    return float((restored - w).norm() / w.norm())


def test_only_the_last_scale_survives() -> None:
    w = loud()
    codes, scale = GroupQuantizer().quantize(w)
    assert scale.numel() == 1
    assert 0.7 < relative(codes * scale, w) < 1
    ours = scheme_of("int8-g128")
    assert relative(decode(encode(w, ours), ours), w) < 0.01


def test_a_group_of_zeros_is_nan_and_memory_is_not_saved() -> None:
    w = loud()
    w[:, 128:256] = 0
    codes, _ = GroupQuantizer().quantize(w)
    assert bool(codes[:, 128:256].isnan().all())
    assert codes.dtype == torch.float32 and codes.nbytes == w.nbytes
    ours = encode(w, scheme_of("int8-g128"))
    assert sum(t.nbytes for t in ours if t is not None) < 0.26 * w.nbytes
    assert bool((decode(ours, scheme_of("int8-g128"))[:, 128:256] == 0).all())


def dynamic(model: R1Model) -> nn.Module:
    """The article's one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = torch.ao.quantization.quantize_dynamic(
            model, {nn.Linear}, dtype=torch.qint8
        )
    said = [w for w in caught if issubclass(w.category, DeprecationWarning)]
    assert any("deprecated" in str(w.message) for w in said)
    return made


def test_quantize_dynamic_is_deprecated_and_misses_the_experts() -> None:
    wide = {"n_routed_experts": 32, "kv_lora_rank": 16, "v_head_dim": 16}
    model = tiny_model(**wide, intermediate_size=48)
    total = sum(p.numel() for p in model.parameters())
    left = sum(p.numel() for p in dynamic(model).parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert left >= experts > 0.6 * total
    report = quantize_(model, "int8")
    assert report.routed_coverage == 1
    assert report.coverage > 2 * (1 - left / total)


def test_quantize_dynamic_breaks_mla_when_it_decodes() -> None:
    """Its layers have a method where MLA reads a tensor."""
    model = tiny_model(kv_lora_rank=16, v_head_dim=16, intermediate_size=48)
    made = dynamic(model)
    from r1lite.generation import generate

    with pytest.raises(Exception, match=r"unflatten|device|weight"):
        generate(made, [[1, 2, 3]], max_new_tokens=3)  # type: ignore[arg-type]
    quantize_(model, "int8-dynamic")
    assert len(generate(model, [[1, 2, 3]], 3, stop_ids=())[0]) == 3
