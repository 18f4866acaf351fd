"""`quantize_`: a model's linear layers and its experts, in place, and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.quantization.calibrate import Calibration
from r1lite.quantization.coding import Codes, require_finite
from r1lite.quantization.files import Quantised
from r1lite.quantization.report import Entry, Report
from r1lite.quantization.rounding import CALIBRATED, require_method, rounded
from r1lite.quantization.schemes import Scheme, scheme_of
from r1lite.quantization.walk import FloatWeight, float_weights, put_, tied_head
from r1lite.quantization.weight import QuantLinear, QuantWeight

# As in DeepSeek-V3's FP8 release. Embedding, router and norms are no linear layers.
KEEP = ("lm_head", "eh_proj")
Schemes = str | Scheme | Mapping[str, str | Scheme]


def quantize_(
    model: nn.Module,
    scheme: Schemes,
    *,
    method: str = "rtn",
    calibration: Calibration | None = None,
    keep: tuple[str, ...] = KEEP,
) -> Report:
    """Quantise a model in place; its parameters are frozen, it is for inference.

    Args:
        scheme: a name, see `scheme_of`; or one for each weight to quantise, by
            the names of `float_weights`, as `fit_budget` makes them.
        method: "rtn" rounds to nearest; "gptq" and "awq" need a calibration,
            "hqq" an asymmetric scheme.
        calibration: of this model, see `calibrate`.
        keep: weights to leave in float, by their last name or in full. A head
            that is tied to the embedding always stays.

    Raises:
        R1Error: an unknown scheme or method, NaN or infinity in a weight, a
            group that does not fit, a model that is quantised already. The
            model is then what it was.
    """
    _check(model, method, calibration)
    weights = list(float_weights(model))
    chosen = _choose(model, weights, scheme, keep)
    ready: dict[str, QuantWeight] = {}
    notes: dict[str, str] = {}
    for weight in weights:
        if weight.name in chosen:
            made = chosen[weight.name]
            codes, factor, notes[weight.name] = rounded(
                weight.tensor.detach(), made, weight.parts, weight.name, method,
                calibration,
            )  # fmt: skip
            ready[weight.name] = _holder(weight, made, codes, factor, model)
    report = Report(tuple(_entries(model, weights, ready, notes, chosen, scheme)))
    put_(model, ready)
    model.requires_grad_(False)
    model.quantised = Quantised(method)  # type: ignore[assignment]
    return report


def _check(model: nn.Module, method: str, calibration: Calibration | None) -> None:
    if any(isinstance(m, QuantWeight) for m in model.modules()):
        raise R1Error("model: is quantised already; load the float model again")
    require_method(method)
    if method in CALIBRATED and calibration is None:
        raise R1Error(
            f"calibration: {method} needs to see activations; make one with calibrate"
        )


def _choose(
    model: nn.Module,
    weights: list[FloatWeight],
    scheme: Schemes,
    keep: tuple[str, ...],
) -> dict[str, Scheme]:
    """The scheme of each weight that gets one; every check before any change."""
    names = {w.name for w in weights}
    if isinstance(scheme, Mapping):
        unknown = sorted(set(scheme) - names)
        if unknown:
            raise R1Error(
                f"scheme: the model has no weight {unknown[0]!r}; use the names of "
                "float_weights"
            )
        wanted = {name: scheme_of(s) for name, s in scheme.items()}
    else:
        one = scheme_of(scheme)
        wanted = {n: one for n in names if not is_kept(n, keep)}
    if tied_head(model):
        wanted.pop("lm_head", None)
    chosen = {}
    for name, tensor, _ in weights:
        if name in wanted:
            require_finite(tensor, name)
            chosen[name] = wanted[name].fitted(tensor.shape[-1], name)
    for name in chosen:
        owner, _, leaf = name.rpartition(".")
        partner = {"gate_up_proj": "down_proj", "down_proj": "gate_up_proj"}.get(leaf)
        if f"{owner}.{partner}" in names and f"{owner}.{partner}" not in chosen:
            raise R1Error(
                f"{owner}: gate_up_proj and down_proj are quantised together or not "
                "at all; give both a scheme or keep both"
            )
    if not chosen:
        raise R1Error("model: no weight is left to quantise; shorten keep")
    return chosen


def is_kept(name: str, keep: tuple[str, ...]) -> bool:
    """Whether `keep` names this weight, by its last name or in full."""
    return any(name == k or name.endswith("." + k) for k in keep)


def _holder(
    weight: FloatWeight,
    scheme: Scheme,
    codes: Codes,
    factor: Tensor | None,
    model: nn.Module,
) -> QuantWeight:
    name, tensor, parts = weight
    given = (scheme, tuple(tensor.shape), codes, tensor.dtype, parts, factor)
    if tensor.ndim == 3:
        return QuantWeight(*given)
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    bias = None if linear.bias is None else linear.bias.detach()
    return QuantLinear(*given, bias=bias, keep_copy=name.endswith("kv_b_proj"))


def _entries(
    model: nn.Module,
    weights: list[FloatWeight],
    ready: dict[str, QuantWeight],
    notes: dict[str, str],
    chosen: dict[str, Scheme],
    scheme: Schemes,
) -> Iterator[Entry]:
    linear = {id(w.tensor): w.name for w in weights}
    tied = tied_head(model)
    for full, p in model.named_parameters():
        name = linear.get(id(p), full)
        if name not in ready:
            why = _why_float(name, id(p) in linear and not (tied and name == "lm_head"))
            yield Entry(name, p.numel(), p.nbytes, p.nbytes, "", why)
            continue
        after = sum(b.nbytes for b in ready[name].buffers())
        note = notes[name]
        asked = scheme if not isinstance(scheme, Mapping) else scheme[name]
        if chosen[name] != scheme_of(asked):
            fit = f"a group that divides {p.shape[-1]} inputs"
            note = f"{fit}; {note}" if note else fit
        yield Entry(name, p.numel(), p.nbytes, after, chosen[name].name, note)


def _why_float(name: str, could: bool) -> str:
    if could:
        return "asked to be kept"
    if "embed_tokens" in name or name == "lm_head":
        return "embedding: rows are looked up, not multiplied"
    if name.endswith(".gate.weight"):
        return "router: a wrong choice of expert costs more than its few bytes"
    if "norm" in name:
        return "norm: a vector"
    return "bias: a vector" if name.endswith("bias") else "no linear layer"
