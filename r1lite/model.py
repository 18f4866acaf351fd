"""R1Model: DeepSeek-V3 as one readable transformer (arXiv 2412.19437, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import Tensor, nn

from r1lite.attention.cache import LatentCache
from r1lite.attention.mask import additive_mask, check_inputs, positions_of
from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import Rope
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.hot import prepare_kernels
from r1lite.moe.experts import SwiGLU
from r1lite.moe.layer import MoE
from r1lite.mtp import MTP


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


class R1Model(nn.Module):
    """Token ids in, next-token logits out.

    Weights are drawn from torch's global generator with standard deviation
    ``config.initializer_range`` (0.006 in V3); norms start at 1.
    """

    def __init__(self, config: R1Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.layers = nn.ModuleList(
            Block(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp: MTP | None = None
        if config.num_nextn_predict_layers:
            self.mtp = MTP(config, Block(config, config.num_hidden_layers))
        self.rope = Rope(config)
        self._initialize(config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        prepare_kernels()

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
            R1Error: a shape does not fit, the cache is full, or, found on a CPU
                only, an id is outside the vocabulary.
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
        check_inputs(input_ids, attention_mask, document_ids, past, position_ids)
        seq = input_ids.shape[1]
        if position_ids is None:
            position_ids = positions_of(input_ids, attention_mask, past)
        try:
            x = self.embed_tokens(input_ids)
        except IndexError as e:
            raise R1Error(
                "input_ids: holds an id outside the vocabulary of "
                f"{self.config.vocab_size}; use the model's tokenizer"
            ) from e
        turn = self.rope(position_ids, x.dtype)
        mask = additive_mask(seq, past + seq, attention_mask, document_ids, x)
        for layer in self.layers:
            x = layer(x, turn, mask, cache)
        if cache is not None:
            cache.advance(seq)
        return self.norm(x)

    def mtp_hidden(
        self,
        input_ids: Tensor,
        hidden: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """The MTP block's states: position i has seen token i+1, predicts i+2.

        Args:
            input_ids: (batch, seq); hidden: (batch, seq, hidden), the trunk's
                output for them. The masks are those given to the trunk.

        Returns:
            (batch, seq - 1, hidden), ready for ``lm_head``.

        Raises:
            R1Error: the model has no MTP module.
        """
        if self.mtp is None:
            raise R1Error(
                "model.num_nextn_predict_layers: this model has no MTP module; "
                "build it with 1"
            )
        if position_ids is None:
            position_ids = positions_of(input_ids, attention_mask, 0)
        seq = input_ids.shape[1] - 1
        real = None if attention_mask is None else attention_mask[:, :-1]
        documents = None if document_ids is None else document_ids[:, :-1]
        turn = self.rope(position_ids[:, :-1], hidden.dtype)
        mask = additive_mask(seq, seq, real, documents, hidden)
        return self.mtp(self.embed_tokens(input_ids[:, 1:]), hidden[:, :-1], turn, mask)

    def mtp_logits(self, input_ids: Tensor, hidden: Tensor, **masks: Any) -> Tensor:
        """(batch, seq - 1, vocab): position i scores token i+2."""
        return self.lm_head(self.mtp_hidden(input_ids, hidden, **masks))

    def new_cache(self, batch: int, max_len: int) -> LatentCache:
        """An empty cache in the model's dtype, on its device."""
        weight = self.embed_tokens.weight
        return LatentCache(self.config, batch, max_len, weight.dtype, weight.device)

    def save_pretrained(self, path: str | PathLike[str], **options: Any) -> None:
        """Write a Hugging Face directory; see `r1lite.hub.save_pretrained`."""
        from r1lite.hub import save_pretrained

        save_pretrained(self, path, **options)
