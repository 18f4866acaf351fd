"""The article's expert: a Transformer block with attention inside.

DeepSeek-V3 does not do this; its expert is a SwiGLU MLP that sees one token
(:mod:`r1lite.moe.experts`). Built here to be run and measured. What breaks:

- An expert holds whatever tokens the router sent it, of all sequences of the
  batch. Attention over them makes a token's output depend on other sequences
  and, without a mask, on later tokens: the training loss is not honest.
- While a model writes, a token comes alone. Attention over one token returns
  its own value, so the expert computes another function than in training. No
  cache repairs it: which earlier tokens an expert saw depends on the batch.
- Scores cost (tokens routed together) squared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionExpert(nn.Module):
    """x + Attention(LayerNorm(x)), then h + FFN(LayerNorm(h)).

    16 heads of 64, an FFN of 4096, LayerNorm and residuals, as in the article.
    It leaves open where the norm stands, which activation, biases and mask it
    means, and its code chains the parts without a residual; here: norm first,
    GELU, no biases, no mask.

    Args:
        causal: hide later rows. Rows are tokens of the whole batch in order,
            so earlier sequences stay visible.
    """

    def __init__(
        self,
        hidden: int = 1024,
        heads: int = 16,
        head_dim: int = 64,
        inner: int = 4096,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv_proj = nn.Linear(hidden, 3 * heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.ffn_norm = nn.LayerNorm(hidden)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """rows: (n, hidden), tokens that attend to each other -> (n, hidden)."""
        h = rows + self.attend(self.attention_norm(rows))
        return h + self.down_proj(F.gelu(self.up_proj(self.ffn_norm(h))))

    def attend(self, rows: Tensor) -> Tensor:
        """Multi-head attention among the rows: (n, hidden) -> (n, hidden)."""
        qkv = self.qkv_proj(rows).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # (1, heads, n, head_dim)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o_proj(seen[0].transpose(0, 1).flatten(1))


class AttentionExperts(nn.Module):
    """A stack of them, called like :class:`r1lite.moe.experts.Experts`.

    Args:
        causal, sizes: handed to every AttentionExpert.
    """

    def __init__(self, n_experts: int, causal: bool = False, **sizes: int) -> None:
        super().__init__()
        self.stack = nn.ModuleList(
            AttentionExpert(causal=causal, **sizes) for _ in range(n_experts)
        )

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Each expert attends over its own rows.

        Args:
            rows: (N, hidden), the first counts[0] rows for expert 0, and so on.
            counts: (E,) int64, may hold zeros, sums to N.

        Returns:
            (N, hidden) in the same order.
        """
        blocks = rows.split(counts.tolist())
        done = [
            expert(block)
            for expert, block in zip(self.stack, blocks, strict=True)
            if len(block)
        ]
        return torch.cat(done) if done else rows
