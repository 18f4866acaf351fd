"""Translation between R1Model and the released DeepSeek files: names, config.

Pure functions: nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.errors import R1Error

V2_DEFAULTS: dict[str, Any] = {
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
}
FAMILIES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "r1lite": "R1Model",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES["float16"] = torch.float16
ONE_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def family(config: R1Config) -> str:
    """The model_type whose transformers class computes the same function.

    Router variants that neither V3's nor V2's class has are called "r1lite":
    transformers then refuses the directory instead of changing its logits.
    """
    if config.scoring_func == "sigmoid" and config.topk_method == "noaux_tc":
        return "deepseek_v3"
    v2 = config.scoring_func == "softmax" and config.topk_method != "noaux_tc"
    if v2 and not config.norm_topk_prob and config.rope_interleave:
        return "deepseek_v2"
    return "r1lite"


def config_to_hf(config: R1Config, dtype: torch.dtype) -> dict[str, Any]:
    """What goes into config.json."""
    values = config.to_dict()
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = config.num_attention_heads
    name = family(config)
    return {
        "architectures": [FAMILIES[name]],
        "model_type": name,
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        **values,
    }


def config_from_hf(values: dict[str, Any], where: str) -> tuple[R1Config, torch.dtype]:
    """Read config.json, of a release, of transformers 4 or 5, or ours.

    Raises:
        R1Error: another architecture, a quantised checkpoint, an impossible value.
    """
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise R1Error(
            f"{where}: model_type {kind!r} is not a DeepSeek-V2/V3 model; "
            "give a directory of one"
        )
    if values.get("quantization_config"):
        raise R1Error(
            f"{where}: quantization_config is set; convert the weights to "
            "bfloat16 first and remove it"
        )
    known = {f.name for f in fields(R1Config)}
    base = V2_DEFAULTS if kind == "deepseek_v2" else {}
    given = {k: v for k, v in values.items() if k in known and v is not None}
    # None is a value for these two: no query compression, no padding token.
    given |= {k: values[k] for k in ("q_lora_rank", "pad_token_id") if k in values}
    for token in ("bos_token_id", "eos_token_id"):
        if isinstance(given.get(token), list):
            given[token] = given[token][0]
    name = values.get("dtype") or values.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise R1Error(f"{where}: dtype {name!r} is unknown; use {', '.join(DTYPES)}")
    config = R1Config.from_dict({**base, **given, **_rope_from_hf(values, where)})
    return config, DTYPES[name]


def _rope_from_hf(values: dict[str, Any], where: str) -> dict[str, Any]:
    """transformers 5 writes one `rope_parameters` for theta and scaling."""
    rope = dict(values.get("rope_parameters") or {})
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise R1Error(
            f"{where}: partial_rotary_factor is not built; DeepSeek turns the "
            "whole of qk_rope_head_dim"
        )
    if not rope:
        return {}
    found: dict[str, Any] = {}
    theta = rope.pop("rope_theta", None)
    if theta is not None:
        found["rope_theta"] = float(theta)
    plain = (rope.get("rope_type") or rope.get("type") or "default") == "default"
    found["rope_scaling"] = None if plain else rope
    return found


def mtp_prefix(config: R1Config) -> str:
    """MTP weights stand in the file as one layer more than the model has."""
    return f"model.layers.{config.num_hidden_layers}."


def hf_name(name: str, config: R1Config) -> str:
    """The released name of one of R1Model's tensors."""
    if not name.startswith("mtp."):
        return name if name.startswith("lm_head.") else "model." + name
    name = name.removeprefix("mtp.")
    name = re.sub(r"^norm\.", "shared_head.norm.", name)
    return mtp_prefix(config) + name.removeprefix("block.")


def our_name(name: str, config: R1Config) -> str:
    """The inverse of `hf_name`; a foreign name comes back as it is."""
    extra = mtp_prefix(config)
    if not name.startswith(extra):
        return name.removeprefix("model.")
    name = name.removeprefix(extra).replace("shared_head.norm.", "norm.")
    own = ("enorm.", "hnorm.", "eh_proj.", "norm.")
    return "mtp." + (name if name.startswith(own) else "block." + name)


def is_copy(name: str, config: R1Config) -> bool:
    """Whether the file repeats here what R1Model shares or does not have."""
    if name.startswith(mtp_prefix(config)):
        return name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))
    tied = config.tie_word_embeddings and name == "lm_head.weight"
    return tied or name.endswith("rotary_emb.inv_freq")


def export(state: dict[str, Tensor], config: R1Config) -> Iterator[tuple[str, Tensor]]:
    """Released names and tensors, experts one by one, views where possible."""
    for name, tensor in state.items():
        full = hf_name(name, config)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("e_score_correction_bias") and not _has_bias(config):
            continue
        stem, _, leaf = full.rpartition(".")
        if leaf == "gate_up_proj":
            for i, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                yield f"{stem}.{i}.gate_proj.weight", gate
                yield f"{stem}.{i}.up_proj.weight", up
        elif leaf == "down_proj":
            for i, expert in enumerate(tensor):
                yield f"{stem}.{i}.down_proj.weight", expert
                if i == 0 and not config.n_shared_experts:
                    yield from _no_shared(stem.removesuffix("experts"), config, tensor)
        else:
            yield full, tensor


def _has_bias(config: R1Config) -> bool:
    """V2's class has no such buffer; there it stays zero and unused."""
    return family(config) != "deepseek_v2"


def _no_shared(
    stem: str, config: R1Config, like: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """transformers always has a shared expert: give it one of width zero."""
    for part in ("gate", "up"):
        empty = like.new_empty(0, config.hidden_size)
        yield f"{stem}shared_experts.{part}_proj.weight", empty
    yield (
        f"{stem}shared_experts.down_proj.weight",
        like.new_empty(config.hidden_size, 0),
    )
