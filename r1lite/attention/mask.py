"""Positions and masks, made once per forward and shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.hot import hot


def positions_of(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Default positions, (1 or batch, seq): counting from the first real token."""
    seq = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(past, past + seq, device=input_ids.device).unsqueeze(0)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -seq:]


@hot
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


def check_inputs(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    past: int,
    position_ids: Tensor | None = None,
) -> None:
    """Refuse shapes that would broadcast into nonsense; `past` is cached.

    Raises:
        R1Error: naming the argument.
    """
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
    fitting = (batch, seq), (1, seq)
    if position_ids is not None and position_ids.shape not in fitting:
        raise R1Error(
            f"position_ids: shape {tuple(position_ids.shape)} does not fit "
            f"input_ids; give {fitting[0]} or {fitting[1]}"
        )
    if document_ids is not None and (past or document_ids.shape != input_ids.shape):
        raise R1Error(
            "document_ids: packed documents take input_ids' shape and an empty "
            "cache; pass one id per token"
        )
