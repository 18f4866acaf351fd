"""R1Model: DeepSeek-V3 as one readable transformer (arXiv 2412.19437, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from r1lite.attention.cache import LatentCache
from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import Rope
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.moe.experts import SwiGLU
from r1lite.moe.layer import MoE


@dataclass
class R1Output:
    """logits (batch, seq, vocab); hidden (batch, seq, hidden) after the norm."""

    logits: Tensor
    hidden: Tensor


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: R1Config, layer: int) -> None:
        super().__init__()
        self.self_attn = MLA(config, layer)
        self.mlp: nn.Module = (
            MoE(config)
            if config.is_moe(layer)
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """x: (batch, seq, hidden) -> the same; the rest as in MLA."""
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def positions_of(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Default positions, (1 or batch, seq): counting from the first real token."""
    seq = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(past, past + seq, device=input_ids.device).unsqueeze(0)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -seq:]


def additive_mask(
    seq: int,
    kv: int,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    like: Tensor,
) -> Tensor | None:
    """0 where a query may look, -inf elsewhere: (batch or 1, 1, seq, kv).

    None where nothing is hidden but the future, or not even that: those need
    no mask. A query always sees itself, so that padding gives no 0/0.
    """
    if attention_mask is None and document_ids is None and seq in (1, kv):
        return None
    rows = torch.arange(kv - seq, kv, device=like.device).unsqueeze(1)
    columns = torch.arange(kv, device=like.device)
    allowed = (columns <= rows).unsqueeze(0)
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool().unsqueeze(1)
    if document_ids is not None:
        allowed = allowed & (document_ids.unsqueeze(2) == document_ids.unsqueeze(1))
    allowed = (allowed | (columns == rows)).unsqueeze(1)
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(allowed, zero, float("-inf"))


class R1Model(nn.Module):
    """Token ids in, next-token logits out.

    Weights are drawn from torch's global generator with standard deviation
    ``config.initializer_range`` (0.006 in V3); norms start at 1.
    """

    def __init__(self, config: R1Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp: nn.Module | None = None
        self.rope = Rope(config)
        self._initialize(config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def _initialize(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> R1Output:
        """Logits of every position.

        Args:
            input_ids: (batch, seq) int64.
            position_ids: (batch or 1, seq); default: counted from the first
                real token.
            attention_mask: (batch, cached + seq), True or 1 where real.
            document_ids: (batch, seq); tokens see only their own document.
            cache: continues where it stands, and is extended.

        Raises:
            R1Error: a shape or an id does not fit, or the cache is full.
        """
        h = self.hidden(
            input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            document_ids=document_ids,
            cache=cache,
        )
        return R1Output(self.lm_head(h), h)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """The final-norm states (batch, seq, hidden); see `forward`."""
        past = 0 if cache is None else cache.length
        _check(input_ids, attention_mask, document_ids, past)
        seq = input_ids.shape[1]
        if position_ids is None:
            position_ids = positions_of(input_ids, attention_mask, past)
        x = self.embed_tokens(input_ids)
        turn = self.rope(position_ids, x.dtype)
        mask = additive_mask(seq, past + seq, attention_mask, document_ids, x)
        for layer in self.layers:
            x = layer(x, turn, mask, cache)
        if cache is not None:
            cache.advance(seq)
        return self.norm(x)

    def new_cache(self, batch: int, max_len: int) -> LatentCache:
        """An empty cache in the model's dtype, on its device."""
        weight = self.embed_tokens.weight
        return LatentCache(self.config, batch, max_len, weight.dtype, weight.device)

    def save_pretrained(self, path: str | PathLike[str], **options: Any) -> None:
        """Write a Hugging Face directory; see `r1lite.hub.save_pretrained`."""
        from r1lite.hub import save_pretrained

        save_pretrained(self, path, **options)


def _check(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    past: int,
) -> None:
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise R1Error(
            f"input_ids: shape {tuple(input_ids.shape)}; give (batch, seq), seq >= 1"
        )
    batch, seq = input_ids.shape
    if attention_mask is not None and attention_mask.shape != (batch, past + seq):
        raise R1Error(
            f"attention_mask: shape {tuple(attention_mask.shape)} does not cover "
            f"the {past} cached and {seq} new tokens; give {(batch, past + seq)}"
        )
    if document_ids is not None and (past or document_ids.shape != input_ids.shape):
        raise R1Error(
            "document_ids: packed documents take input_ids' shape and an empty "
            "cache; pass one id per token"
        )
