"""Greedy decoding that drafts with the MTP block (V3, arXiv 2412.19437, 5.4.3).

The MTP block guesses the token after the next one. The trunk reads the next
token and the guess in one pass: if it agrees, that pass gave two tokens. The
result is that of greedy decoding, whatever the guesses were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1lite.attention.cache import LatentCache
from r1lite.attention.mask import additive_mask
from r1lite.errors import R1Error
from r1lite.model import R1Model


@dataclass
class Speculation:
    """New tokens, and how many drafts the trunk saw and agreed with."""

    tokens: list[int]
    drafted: int = 0
    accepted: int = 0


@torch.inference_mode()
def speculate(
    model: R1Model,
    prompt: Sequence[int],
    max_new_tokens: int = 64,
    stop_ids: Sequence[int] | None = None,
) -> Speculation:
    """Continue one prompt greedily, up to and with a stop id (default: config's).

    One row only: rows accept different numbers of tokens, and the cache has
    one length. Equal to `generate` token for token, unless two logits are
    closer than rounding (one token and two take different kernels).

    Raises:
        R1Error: no MTP module, empty prompt, or the context is too short.
    """
    _check(model, prompt, max_new_tokens)
    stops = {model.config.eos_token_id} if stop_ids is None else set(stop_ids)
    made = Speculation([])
    cache = _cache(model, len(prompt) + max_new_tokens + 1)
    fresh = torch.tensor([list(prompt)], device=model.lm_head.weight.device)
    while True:
        start, drafting = cache.length, cache.length > 0
        hidden = model.hidden(fresh, cache=cache)
        # After the prompt, `fresh` is the next token and a draft of the one after.
        picks = model.lm_head(hidden if drafting else hidden[:, -1:]).argmax(-1)
        if drafting:
            made.drafted += 1
            agreed = bool(picks[0, 0] == fresh[0, 1])
            made.accepted += agreed
            # What follows a wrong draft is wrong, in the answer and in the cache.
            keep = 2 if agreed else 1
            hidden, picks, fresh = hidden[:, :keep], picks[:, :keep], fresh[:, :keep]
        for token in picks[0].tolist():
            made.tokens.append(token)
            if token in stops or len(made.tokens) == max_new_tokens:
                return made
        after = torch.cat((fresh[:, 1:], picks[:, -1:]), 1)
        draft = _draft(model, after, hidden, cache, start)
        fresh = torch.cat((picks[:, -1:], draft), 1)


def _draft(
    model: R1Model, after: Tensor, hidden: Tensor, cache: LatentCache, start: int
) -> Tensor:
    """The token after the last of `after`, (1, 1); brings the cache to its end.

    after: (1, seq), the token that follows each state of hidden (1, seq, H),
    which stand at positions start, start + 1, ...
    """
    assert model.mtp is not None
    seq = after.shape[1]
    cache.length = start  # the MTP block writes its columns beside the trunk's
    positions = torch.arange(start, start + seq, device=after.device)
    turn = model.rope(positions.unsqueeze(0), hidden.dtype)
    mask = additive_mask(seq, start + seq, None, None, hidden)
    state = model.mtp(model.embed_tokens(after), hidden, turn, mask, cache)
    cache.advance(seq)
    return model.lm_head(state[:, -1:]).argmax(-1)


def _cache(model: R1Model, max_len: int) -> LatentCache:
    """The trunk's layers and one more, the MTP block's."""
    weight = model.embed_tokens.weight
    layers = model.config.num_hidden_layers + 1
    config = model.config.with_(num_hidden_layers=layers)
    return LatentCache(config, 1, max_len, weight.dtype, weight.device)


def _check(model: R1Model, prompt: Sequence[int], new: int) -> None:
    if model.mtp is None:
        raise R1Error(
            "model.num_nextn_predict_layers: this model has no MTP module to "
            "draft with; use generate"
        )
    if not prompt:
        raise R1Error("prompt: is empty; give at least one token")
    limit = model.config.max_position_embeddings
    if len(prompt) + new > limit:
        raise R1Error(
            f"prompt: {len(prompt)} tokens and {new} new ones exceed the context "
            f"of {limit}; shorten the prompt or lower max_new_tokens"
        )
