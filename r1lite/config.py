"""The model's configuration: one frozen dataclass with DeepSeek-V3's names.

Field names and defaults are those of ``transformers.DeepseekV3Config``, so a
``config.json`` travels in both directions without a translation table.
Source: DeepSeek-V3, arXiv 2412.19437, section 4.2, and the released configs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from r1lite.errors import R1Error

SCORING = ("sigmoid", "softmax")
TOPK_METHODS = ("noaux_tc", "greedy", "group_limited_greedy")


@dataclass(frozen=True)
class R1Config:
    """Every number that shapes an R1 model. Defaults are the published 671B.

    Raises:
        R1Error: a value is impossible; the message names field and remedy.
    """

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 0
    num_attention_heads: int = 128
    num_key_value_heads: int | None = None  # MLA has one per head; kept for HF
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    routed_scaling_factor: float = 2.5
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    n_group: int = 8
    topk_group: int = 4
    num_experts_per_tok: int = 8
    first_k_dense_replace: int = 3
    norm_topk_prob: bool = True
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_interleave: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check_ranges(self)
        _check_choices(self)
        _check_experts(self)

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head: the part without position plus RoPE's."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Numbers cached per token and layer: the latent and one RoPE key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` routes to experts (the first k are dense)."""
        return layer >= self.first_k_dense_replace

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    def with_(self, **changes: Any) -> R1Config:
        """A copy with some fields changed, checked again."""
        _reject_unknown(changes)
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> R1Config:
        """Build from plain values; an unknown key is an error."""
        _reject_unknown(values)
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> R1Config:
        """One of the book's sizes: nano, micro, small, 1b, v3."""
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise R1Error(f"preset: no model is called {name!r}; choose {known}")
        return cls(**PRESETS[name])


def _reject_unknown(values: dict[str, Any]) -> None:
    known = {f.name for f in fields(R1Config)}
    for name in values:
        if name not in known:
            raise R1Error(
                f"model.{name}: R1Config has no such field; remove it or fix its name"
            )


def _check_kinds(c: R1Config) -> None:
    for f in fields(c):
        value = getattr(c, f.name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        found = f"model.{f.name}: {value!r}"
        if f.type == "int" and not whole:
            raise R1Error(f"{found} is not a whole number; give one")
        if f.type == "int | None" and not whole and value is not None:
            raise R1Error(f"{found} is not a whole number; give one, or none")
        if f.type == "bool" and not isinstance(value, bool):
            raise R1Error(f"{found} is neither true nor false; give one of them")
        number = whole or (isinstance(value, float) and math.isfinite(value))
        if f.type == "float" and not number:
            raise R1Error(f"{found} is not a finite number; give one")


def _check_ranges(c: R1Config) -> None:
    may_be_zero = {
        "num_nextn_predict_layers",
        "n_shared_experts",
        "first_k_dense_replace",
    }
    for f in fields(c):
        if f.type == "int":
            least = 0 if f.name in may_be_zero else 1
            if getattr(c, f.name) < least:
                raise R1Error(
                    f"model.{f.name}: {getattr(c, f.name)} is too small; "
                    f"give at least {least}"
                )
    if c.qk_rope_head_dim % 2:
        raise R1Error(
            f"model.qk_rope_head_dim: {c.qk_rope_head_dim} is odd, RoPE turns "
            "pairs; give an even number"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(c, name)
        if token is not None and not 0 <= token < c.vocab_size:
            raise R1Error(
                f"model.{name}: {token} is no token of a vocabulary of "
                f"{c.vocab_size}; give one, or none"
            )
    if c.q_lora_rank is not None and c.q_lora_rank < 1:
        raise R1Error(
            f"model.q_lora_rank: {c.q_lora_rank} is too small; give at least 1, or "
            "none to leave queries whole"
        )
    limits = {"rms_norm_eps": 0, "initializer_range": 0, "rope_theta": 1}
    for name, above in limits.items():
        if getattr(c, name) <= above:
            raise R1Error(
                f"model.{name}: {getattr(c, name)} is too small; give more than {above}"
            )
    if not 0 <= c.attention_dropout < 1:
        raise R1Error(
            f"model.attention_dropout: {c.attention_dropout} is no share to drop; "
            "give 0 or more, below 1"
        )


def _check_choices(c: R1Config) -> None:
    if c.scoring_func not in SCORING:
        raise R1Error(
            f"model.scoring_func: {c.scoring_func!r} is unknown; choose "
            + " or ".join(SCORING)
        )
    if c.topk_method not in TOPK_METHODS:
        raise R1Error(
            f"model.topk_method: {c.topk_method!r} is unknown; choose "
            + ", ".join(TOPK_METHODS)
        )
    if c.hidden_act != "silu":
        raise R1Error(
            f"model.hidden_act: {c.hidden_act!r} is not built; DeepSeek uses 'silu'"
        )
    if c.num_nextn_predict_layers > 1:
        raise R1Error("model.num_nextn_predict_layers: V3 trains depth 1; give 0 or 1")


def _check_experts(c: R1Config) -> None:
    if c.n_routed_experts % c.n_group:
        raise R1Error(
            f"model.n_group: {c.n_group} groups do not divide {c.n_routed_experts} "
            "routed experts; choose a divisor of n_routed_experts"
        )
    if not c.topk_group <= c.n_group:
        raise R1Error(
            f"model.topk_group: cannot keep {c.topk_group} of {c.n_group} groups; "
            "give at most n_group"
        )
    reachable = c.topk_group * (c.n_routed_experts // c.n_group)
    if c.num_experts_per_tok > reachable:
        raise R1Error(
            f"model.num_experts_per_tok: {c.num_experts_per_tok} experts cannot be "
            f"picked from the {reachable} that the kept groups hold; lower it"
        )
    per_group = c.n_routed_experts // c.n_group
    if c.topk_method == "noaux_tc" and c.n_group > 1 and per_group < 2:
        raise R1Error(
            "model.n_group: noaux_tc sums the two best experts of a group, so a "
            "group needs 2; use fewer groups"
        )


_V3 = {"initializer_range": 0.006, "num_nextn_predict_layers": 1}
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 1024,
        "hidden_size": 96,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 48,
        "q_lora_rank": None,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "eos_token_id": 1,
        "pad_token_id": 2,
    },
    "micro": {
        "vocab_size": 4096,
        "hidden_size": 320,
        "intermediate_size": 896,
        "moe_intermediate_size": 192,
        "num_hidden_layers": 8,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 5,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 128,
        "q_lora_rank": None,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "routed_scaling_factor": 1.0,
        "max_position_embeddings": 1024,
        "initializer_range": 0.02,
        "pad_token_id": 2,
    },
    "small": {
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 12,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 12,
        "n_shared_experts": 1,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 256,
        "q_lora_rank": 384,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "routed_scaling_factor": 2.0,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "pad_token_id": 2,
    },
    "1b": {
        "vocab_size": 32768,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 16,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 16,
        "n_shared_experts": 1,
        "n_routed_experts": 24,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "max_position_embeddings": 4096,
        **_V3,
        "pad_token_id": 2,
    },
    "v3": {
        **_V3,
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
}
