"""Reading a quantised directory in one pass, straight into its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.hub import layout
from r1lite.hub.files import names_in, read_json, weight_files
from r1lite.model import R1Model
from r1lite.moe.balance import routers
from r1lite.quantization.files import FP8_CONFIG, Quantised
from r1lite.quantization.schemes import Scheme, scheme_of
from r1lite.quantization.walk import float_weights, put_
from r1lite.quantization.weight import QuantLinear, QuantWeight

EXPERT = re.compile(r"(.*\.experts)\.\d+\.(gate|up|down)_proj")
SCALE_INV = ".weight_scale_inv"


def load_quantised(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> R1Model:
    """The model of a directory whose config.json has a `quantization_config`.

    `from_pretrained` calls this. No float copy of a quantised weight is made:
    memory for the codes is laid out and every tensor of the files copied there.

    Args:
        dtype: of what is not quantised and of the products.

    Raises:
        R1Error: another kind of quantisation, or files that do not fit.
    """
    file = folder / "config.json"
    values = read_json(file)
    how = values.pop("quantization_config", None) or {}
    config, kept = layout.config_from_hf(values, str(file))
    files = weight_files(folder)
    names = {name for each in files for name in names_in(each)}
    if not any(n.startswith(layout.mtp_prefix(config)) for n in names):
        config = config.with_(num_nextn_predict_layers=0)
    schemes = _schemes(how, names, config, file)
    scaled = {layout.our_name(n, config) for n in names if n.endswith(".input_scale")}
    with torch.device("meta"):
        model = R1Model(config).to(dtype or kept)
        _lay_out(model, schemes, scaled, dtype or kept, file)
    model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    for router in routers(model):
        router.counts.zero_()
        router.e_score_correction_bias.zero_()  # V2 files have none
    model.quantised = Quantised(how.get("rounding", "rtn"))  # type: ignore[assignment]
    _fill(model, files)
    return model.eval().requires_grad_(False)


def _schemes(
    how: dict[str, Any], names: set[str], config: Any, file: Path
) -> dict[str, Scheme]:
    """The scheme of each quantised weight, by our name."""
    kind = how.get("quant_method")
    if kind == "r1lite":
        found = how.get("weights")
        if not isinstance(found, dict) or not found:
            raise R1Error(f"{file}: quantization_config names no weights; save again")
        return {name: scheme_of(scheme) for name, scheme in found.items()}
    for key in ("fmt", "weight_block_size"):
        if kind != "fp8" or how.get(key, FP8_CONFIG[key]) != FP8_CONFIG[key]:
            raise R1Error(
                f"{file}: quantization_config is {how}; only r1lite's own and fp8 "
                "e4m3 in blocks of 128 x 128 can be read"
            )
    found = {}
    for name in names:
        if name.endswith(SCALE_INV):
            stem = name.removesuffix(SCALE_INV)
            if expert := EXPERT.fullmatch(stem):
                leaf = "down_proj" if expert[2] == "down" else "gate_up_proj"
                stem = f"{expert[1]}.{leaf}"
            found[layout.our_name(stem, config)] = Scheme("fp8", 8)
    if not found:
        raise R1Error(
            f"{file}: quantization_config is set, but no weight has its scales "
            f"(*{SCALE_INV}); copy all files again, or remove it"
        )
    return found


def _lay_out(
    model: R1Model,
    schemes: dict[str, Scheme],
    scaled: set[str],
    dtype: torch.dtype,
    file: Path,
) -> None:
    """Swap in empty quantised weights; runs on the meta device."""
    ready: dict[str, QuantWeight] = {}
    for name, tensor, parts in float_weights(model):
        if name in schemes:
            scheme, shape = schemes[name], tuple(tensor.shape)
            with_scale = f"{name}.input_scale" in scaled
            if tensor.ndim == 3:
                kind: Any = QuantWeight
                extra = {}
            else:
                kind, bias = QuantLinear, model.get_submodule(name).bias
                extra = {"bias": bias, "keep_copy": name.endswith("kv_b_proj")}
            ready[name] = kind.empty(scheme, shape, dtype, parts, with_scale, **extra)
    unknown = sorted(set(schemes) - set(ready))
    if unknown:
        raise R1Error(
            f"{file}: quantization_config names {unknown[0]!r}, which this model does "
            "not have; the files do not belong together"
        )
    put_(model, ready)


def _fill(model: R1Model, files: list[Path]) -> None:
    """Copy every tensor of the files to its place and miss none."""
    places = dict(model.quantised.tensors(model))  # type: ignore[union-attr, operator]
    folder = files[0].parent
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if not layout.is_copy(name, model.config):
                    place = places.pop(name, None)
                    _put(place, name, tensors.get_tensor(name), file)
    missing = [n for n, t in places.items() if t.numel()]
    if missing:
        raise R1Error(
            f"{folder}: the weights of {missing[0]} are missing or given twice; copy "
            "all files of the model again"
        )


def _put(place: Tensor | None, name: str, tensor: Tensor, file: Path) -> None:
    if place is None:
        if tensor.numel():
            raise R1Error(
                f"{file}: holds {name}, which this config has no place for; "
                "check config.json"
            )
        return
    # Codes for a float weight as well: their scales may be gone.
    kinds = place, tensor
    coded = any(not t.is_floating_point() or t.element_size() == 1 for t in kinds)
    if place.shape != tensor.shape or (coded and place.dtype != tensor.dtype):
        raise R1Error(
            f"{file}: {name} is {tuple(tensor.shape)} {tensor.dtype}, config.json says "
            f"{tuple(place.shape)} {place.dtype}; the two do not belong together"
        )
    scale = name.endswith(("scales", "zeros", "input_scale", "_scale_inv"))
    if scale and not bool(torch.isfinite(tensor).all()):
        raise R1Error(f"{file}: {name} holds NaN or infinity; copy the file again")
    place.copy_(tensor)
