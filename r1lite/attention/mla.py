"""Multi-head latent attention (V2, arXiv 2405.04434, section 2.1).

Keys and values of all heads are made from one latent per token. Training and
prefill expand the latent to heads; decoding never does: it folds the expansion
into the query and into the output ("absorbed"), and attends to the latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.attention.cache import LatentCache
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import rotate, softmax_scale
from r1lite.config import R1Config
from r1lite.hot import hot


class MLA(nn.Module):
    """One layer's attention. Module names are those of the released weights."""

    def __init__(self, config: R1Config, layer: int) -> None:
        super().__init__()
        c, bias = config, config.attention_bias
        self.layer = layer
        self.heads, self.nope, self.v = (
            c.num_attention_heads,
            c.qk_nope_head_dim,
            c.v_head_dim,
        )
        self.rope, self.rank = c.qk_rope_head_dim, c.kv_lora_rank
        self.interleave, self.dropout = c.rope_interleave, c.attention_dropout
        self.scale = softmax_scale(c)
        q_width = self.heads * c.qk_head_dim
        if c.q_lora_rank is None:
            self.q_proj = nn.Linear(c.hidden_size, q_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(c.hidden_size, c.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank)
            self.q_b_proj = nn.Linear(c.q_lora_rank, q_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, c.cache_width, bias=bias)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank)
        self.kv_b_proj = nn.Linear(
            self.rank, self.heads * (self.nope + self.v), bias=False
        )
        self.o_proj = nn.Linear(self.heads * self.v, c.hidden_size, bias=bias)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (batch, seq, hidden).
            turn: cos and sin, each (batch or 1, seq, rope/2).
            mask: from `additive_mask`, broadcastable to (batch, 1, seq, kv); None
                means causal, and everything when one token decodes.
            cache: written, then read, if given. One with an `attend` method
                does both by itself, as a server's pages do.

        Returns:
            (batch, seq, hidden).
        """
        q_nope, q_rope = self._queries(x, turn)
        latent, k_rope = self._compress(x, turn)
        if cache is not None and hasattr(cache, "attend"):
            return self.o_proj(cache.attend(self, q_nope, q_rope, latent, k_rope))
        if cache is not None:
            past = cache.append(self.layer, latent, k_rope)
            if x.shape[1] == 1:
                return self.o_proj(self._absorbed(q_nope, q_rope, past, mask))
            latent, k_rope = past.split((self.rank, self.rope), dim=-1)
        return self.o_proj(self._expanded(q_nope, q_rope, latent, k_rope, mask))

    def _queries(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch, seq, heads, nope) and (batch, seq, heads, rope), turned."""
        if hasattr(self, "q_proj"):
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.heads, -1))
        nope, rope = q.split((self.nope, self.rope), dim=-1)
        cos, sin = turn[0].unsqueeze(-2), turn[1].unsqueeze(-2)
        return nope, rotate(rope, cos, sin, self.interleave)

    def _compress(
        self, x: Tensor, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The latent (batch, seq, rank) and the one key all heads share."""
        both = self.kv_a_proj_with_mqa(x)
        latent, rope = both.split((self.rank, self.rope), dim=-1)
        return self.kv_a_layernorm(latent), rotate(rope, *turn, self.interleave)

    @hot
    def _expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Every head gets its own keys and values: (batch, seq, heads * v)."""
        kv = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1))
        k_nope, value = kv.split((self.nope, self.v), dim=-1)
        shared = k_rope.unsqueeze(-2).expand(-1, -1, self.heads, -1)
        query = torch.cat((q_nope, q_rope), dim=-1).transpose(1, 2)
        key = torch.cat((k_nope, shared), dim=-1).transpose(1, 2)
        # The fused kernels want values as wide as keys: without the zeros torch
        # falls back to one that writes out every attention score.
        value = F.pad(value, (0, max(0, query.shape[-1] - self.v)))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value.transpose(1, 2),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=self.scale,
        )
        return out[..., : self.v].transpose(1, 2).flatten(-2)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, past: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One token attends to latents: q W_k is the query, (p c) W_v the output.

        past: (batch, kv, rank + rope). Returns (batch, 1, heads * v).
        """
        w_k, w_v = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split(
            (self.nope, self.v), dim=1
        )
        q_latent = torch.bmm(q_nope[:, 0].transpose(0, 1), w_k).transpose(0, 1)
        # The heads share one key per token, so they stand where queries usually
        # stand, and one fused pass reads each row's latents once. The values
        # are the keys: the rotary columns of the result are dropped.
        query = torch.cat((q_latent, q_rope[:, 0]), dim=-1).unsqueeze(1)
        past = past.unsqueeze(1)
        mixed = F.scaled_dot_product_attention(
            query,
            past,
            past,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )[:, 0, :, : self.rank]
        out = torch.bmm(mixed.transpose(0, 1), w_v.transpose(1, 2))
        return out.transpose(0, 1).flatten(1).unsqueeze(1)
