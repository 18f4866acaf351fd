"""Batched, cached generation: the sampler of chat, evaluation and RL.

Prompts of different lengths are padded on the left, so that every row writes
its next token in the same column. Rows that are done leave the batch. A row's
random numbers depend on (seed, row, step) alone, so rows leaving early change
nothing for those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.model import R1Model

SHRINK = 0.8  # compact the batch once fewer than this share of its rows live


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. `temperature` 0 is greedy; 0 turns `top_k` off.

    Filters apply in this order: temperature, top-k, top-p, min-p.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1")
        _require(self.temperature >= 0, "temperature", "0 (greedy) or above")
        _require(self.top_k >= 0, "top_k", "0 (off) or above")
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")

    @property
    def filtered(self) -> bool:
        """Whether any token can be cut from the distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def _require(good: bool, name: str, remedy: str) -> None:
    if not good:
        raise R1Error(f"sampling.{name}: out of range; give {remedy}")


@dataclass
class Samples:
    """What `sample` made: new tokens only, the stop id included.

    `logprobs` are natural logarithms under the temperature's distribution
    before any filter, one per token: what a policy gradient needs.
    """

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (batch, longest); mask is True on real tokens."""
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = True
    return ids, mask


def filter_logits(logits: Tensor, how: Sampling) -> Tensor:
    """Set what top-k, top-p and min-p cut to -inf. logits: (batch, vocab)."""
    if how.top_k:
        k = min(how.top_k, logits.size(-1))
        least = logits.topk(k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if how.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(-1)
        cut = p.cumsum(-1) - p >= how.top_p  # the token that crosses p stays
        logits = logits.masked_fill(cut.scatter(-1, index, cut), -torch.inf)
    if how.min_p:
        p = logits.softmax(-1)
        cut = p < how.min_p * p.amax(-1, keepdim=True)
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def choose(logits: Tensor, how: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pick one token a row: (token, log-probability), both (batch,).

    `uniform` (batch,) in [0, 1) decides by the inverse of the cumulative
    distribution: one number a row instead of one a token.
    """
    if how.temperature == 0:
        token = logits.argmax(-1)
        logp = logits.log_softmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]
    logp = (logits.float() / how.temperature).log_softmax(-1)
    kept = filter_logits(logp, how).softmax(-1) if how.filtered else logp.exp()
    total = kept.cumsum(-1)
    # Scaling by the last sum keeps rounding from pointing past the last token.
    target = uniform[:, None] * total[:, -1:]
    token = torch.searchsorted(total, target, right=True)[:, 0]
    token = token.clamp_max(logits.size(-1) - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]


def _check(model: R1Model, prompts: Sequence[Sequence[int]], how: Sampling) -> None:
    if not prompts or not all(len(p) for p in prompts):
        raise R1Error("prompt: is empty; give at least one token")
    longest = max(len(p) for p in prompts)
    limit = model.config.max_position_embeddings
    if longest + how.max_new_tokens > limit:
        raise R1Error(
            f"prompt: {longest} tokens and {how.max_new_tokens} new ones exceed the "
            f"context of {limit}; shorten the prompt or lower max_new_tokens"
        )
    if max(max(p) for p in prompts) >= model.config.vocab_size:
        raise R1Error(
            "prompt: holds a token id outside the vocabulary; use the model's tokenizer"
        )


@torch.inference_mode()
def sample(
    model: R1Model, prompts: Sequence[Sequence[int]], how: Sampling, n: int = 1
) -> Samples:
    """Continue every prompt `n` times; sample j of prompt i is row i * n + j.

    The n samples of a prompt share one prefill.

    Raises:
        R1Error: empty prompt, or prompt and new tokens exceed the context.
    """
    _check(model, prompts, how)
    device = model.lm_head.weight.device
    pad = model.config.pad_token_id or 0
    ids, mask = left_pad(prompts, pad)
    ids, mask = ids.to(device), mask.to(device)
    width = ids.size(1)
    padded = not bool(mask.all())
    cache = model.new_cache(len(prompts), width + how.max_new_tokens)
    hidden = model.hidden(ids, attention_mask=mask if padded else None, cache=cache)
    logits = model.lm_head(hidden[:, -1])
    position = mask.sum(-1)
    batch = len(prompts) * n
    if n > 1:
        rows = torch.arange(len(prompts), device=device).repeat_interleave(n)
        cache.select(rows)
        logits, position, mask = logits[rows], position[rows], mask[rows]
    grow = torch.ones(batch, how.max_new_tokens, dtype=torch.bool, device=device)
    mask = torch.cat([mask, grow], 1)
    out = torch.full((batch, how.max_new_tokens), pad, dtype=torch.long, device=device)
    logps = torch.zeros(batch, how.max_new_tokens, device=device)
    lengths = torch.full((batch,), how.max_new_tokens, device=device)
    stops = torch.tensor(how.stop_ids, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(how.seed)
    alive = torch.arange(batch, device=device)  # original row of each live row
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    for step in range(how.max_new_tokens):
        uniform = torch.rand(batch, generator=generator).to(device)
        token, logp = choose(logits, how, uniform[alive])
        open_rows = alive[~done]
        out[open_rows, step] = token[~done]
        logps[open_rows, step] = logp[~done]
        ended = torch.isin(token, stops) & ~done
        lengths[alive[ended]] = step + 1
        done = done | ended
        live = int((~done).sum())
        if live == 0 or step + 1 == how.max_new_tokens:
            break
        if live < SHRINK * len(done):
            stay = (~done).nonzero()[:, 0]
            cache.select(stay)
            alive, token, position = alive[stay], token[stay], position[stay]
            mask, done = mask[stay], done[stay]
        hidden = model.hidden(
            token[:, None],
            position_ids=position[:, None],
            attention_mask=mask[:, : width + step + 1] if padded else None,
            cache=cache,
        )
        logits = model.lm_head(hidden[:, -1])
        position = position + 1
    return _collect(out, logps, lengths, stops)


def _collect(out: Tensor, logps: Tensor, lengths: Tensor, stops: Tensor) -> Samples:
    result = Samples()
    for row, logp, length in zip(
        out.tolist(), logps.tolist(), lengths.tolist(), strict=True
    ):
        result.tokens.append(row[:length])
        result.logprobs.append(logp[:length])
    last = out.gather(1, lengths[:, None] - 1)[:, 0]
    result.stopped = torch.isin(last, stops).tolist()
    return result


def generate(
    model: R1Model,
    ids: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: Sequence[int] | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """The new tokens of each prompt, up to and with a stop id.

    `ids`: (batch, seq) tensor or a list of prompts of any lengths. Greedy
    unless a temperature is given; the config's end-of-text id stops a row.

    Raises:
        R1Error: see `sample`.
    """
    prompts = ids.tolist() if isinstance(ids, Tensor) else ids
    if stop_ids is None:
        end = model.config.eos_token_id
        stop_ids = [] if end is None else [end]
    how = Sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids), seed
    )
    was_training = model.training
    model.eval()
    try:
        return sample(model, prompts, how).tokens
    finally:
        model.train(was_training)
