"""Multi-token prediction, depth 1 (V3, arXiv 2412.19437, section 2.2).

From the trunk's state at token i and the embedding of token i+1, one more
block predicts token i+2. It shares the embedding and the head. The paper
writes [h; emb]; the released weights, followed here, expect [emb; h].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from r1lite.attention.cache import LatentCache
from r1lite.attention.norm import RMSNorm
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.loss import head_loss

if TYPE_CHECKING:
    from r1lite.model import R1Model


class MTP(nn.Module):
    """Two norms, a projection back to `hidden`, a block, the head's norm."""

    def __init__(self, config: R1Config, block: nn.Module) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(size, eps)
        self.hnorm = RMSNorm(size, eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.block = block
        self.norm = RMSNorm(size, eps)

    def forward(
        self,
        next_embeds: Tensor,
        hidden: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """Both inputs (batch, seq, hidden), already aligned -> the same shape."""
        both = torch.cat((self.enorm(next_embeds), self.hnorm(hidden)), dim=-1)
        return self.norm(self.block(self.eh_proj(both), turn, mask, cache))


def mtp_targets(
    input_ids: Tensor,
    document_ids: Tensor | None = None,
    target_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each state predicts two tokens on, and whether that counts.

    A position counts when tokens i, i+1 and i+2 belong to one document, none of
    them is padding by `attention_mask` (batch, seq), and `target_mask` (batch, seq)
    marks token i+2 as trained on.

    Returns:
        targets and valid, both (batch, seq - 2).
    """
    targets = input_ids[:, 2:]
    valid = torch.ones_like(targets, dtype=torch.bool)
    if document_ids is not None:
        first, second, third = (
            document_ids[:, :-2],
            document_ids[:, 1:-1],
            document_ids[:, 2:],
        )
        valid = (first == second) & (second == third)
    if attention_mask is not None:
        real = attention_mask.bool()
        valid = valid & real[:, :-2] & real[:, 1:-1] & real[:, 2:]
    if target_mask is not None:
        valid = valid & target_mask[:, 2:].bool()
    return targets, valid


def mtp_loss(
    model: R1Model,
    input_ids: Tensor,
    hidden: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    target_mask: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of token i+2 in nats, without V3's weight lambda.

    Args:
        hidden: (batch, seq, hidden), the trunk's output for these ids; its
            gradient flows back into the trunk.
        attention_mask: (batch, seq), True where a token is real; padding is not
            predicted, and nothing is predicted from it.
        target_mask: (batch, seq), True where a token is trained on.

    Raises:
        R1Error: the model has no MTP module, or rows are shorter than 3.
    """
    if input_ids.shape[1] < 3:
        raise R1Error(
            f"input_ids: rows of {input_ids.shape[1]} tokens hold no token two "
            "steps on; give at least 3"
        )
    states = model.mtp_hidden(
        input_ids,
        hidden,
        position_ids=position_ids,
        attention_mask=attention_mask,
        document_ids=document_ids,
    )[:, :-1]
    targets, valid = mtp_targets(input_ids, document_ids, target_mask, attention_mask)
    if document_ids is None and target_mask is None and attention_mask is None:
        return head_loss(states.flatten(0, 1), model.lm_head, targets.flatten())
    # The head runs only where it counts.
    total = head_loss(states[valid], model.lm_head, targets[valid], "sum")
    return total / valid.sum().clamp(min=1)
