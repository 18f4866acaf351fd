"""Batched, cached generation: the sampler of chat, evaluation and RL.

Prompts of different lengths are padded on the left, so that every row writes
its next token in the same column. Rows that are done leave the batch. A row's
random numbers depend on (seed, row, step) alone, so rows leaving early change
nothing for those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.model import R1Model

LEAST = 1e-6  # of a temperature or top-p above 0: less is no number in float32
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

    tokens: list[list[int]]
    logprobs: list[list[float]]
    stopped: list[bool]


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
        # The token that crosses top-p stays.
        cut = p.cumsum(-1) - p >= max(how.top_p, LEAST)
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
    logp = (logits.float() / max(how.temperature, LEAST)).log_softmax(-1)
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
    vocabulary = range(model.config.vocab_size)
    if not all(min(p) in vocabulary and max(p) in vocabulary for p in prompts):
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
        R1Error: empty prompt, an id outside the vocabulary, or prompt and new
            tokens exceed the context.
    """
    _check(model, prompts, how)
    batch = _Batch(model, prompts, how, n)
    generator = torch.Generator().manual_seed(how.seed)
    for step in range(how.max_new_tokens):
        # Drawn for every row, ended or not: a row's numbers depend on nothing else.
        uniform = torch.rand(len(prompts) * n, generator=generator)
        uniform = uniform.to(batch.rows.device)[batch.rows]
        token, logp = choose(batch.logits, how, uniform)
        batch.record(step, token, logp)
        if step + 1 == how.max_new_tokens or not batch.alive:
            break
        batch.advance(batch.compact(token))
    return batch.collect()


class _Batch:
    """Rows being continued. Rows that ended are recorded no more, then leave.

    `rows` (live,) maps each live row to its row of the result; `logits`
    (live, vocab) are for its next token.
    """

    def __init__(
        self, model: R1Model, prompts: Sequence[Sequence[int]], how: Sampling, n: int
    ) -> None:
        self.model, pad = model, model.config.pad_token_id or 0
        device = model.lm_head.weight.device
        ids, mask = (t.to(device) for t in left_pad(prompts, pad))
        new, size = how.max_new_tokens, len(prompts) * n
        self.padded = not bool(mask.all())
        self.cache = model.new_cache(len(prompts), ids.size(1) + new)
        seen = mask if self.padded else None
        hidden = model.hidden(ids, attention_mask=seen, cache=self.cache)
        self.logits = model.lm_head(hidden[:, -1])
        self.mask = torch.cat([mask, mask.new_ones(len(prompts), new)], 1)
        self.position = mask.sum(-1)  # of the next token
        self.done = torch.zeros(size, dtype=torch.bool, device=device)
        if n > 1:
            each = torch.arange(len(prompts), device=device).repeat_interleave(n)
            self._select(each)
            self.logits = self.logits[each]
        self.rows = torch.arange(size, device=device)
        self.stops = torch.tensor(how.stop_ids, dtype=torch.long, device=device)
        self.tokens = torch.full((size, new), pad, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(size, new, device=device)
        self.lengths = torch.full((size,), new, device=device)
        self.alive = size

    def record(self, step: int, token: Tensor, logp: Tensor) -> None:
        """Write the tokens of rows that have not ended; see which end now."""
        live = ~self.done
        rows = self.rows[live]
        self.tokens[rows, step] = token[live]
        self.logprobs[rows, step] = logp[live].float()
        ended = torch.isin(token, self.stops) & live
        self.lengths[self.rows[ended]] = step + 1
        self.done = self.done | ended
        self.alive = int((~self.done).sum())

    def compact(self, token: Tensor) -> Tensor:
        """Drop ended rows once they are many; returns the tokens that stay."""
        if self.alive >= SHRINK * len(self.rows):
            return token
        stay = (~self.done).nonzero()[:, 0]
        self._select(stay)
        self.rows, self.done = self.rows[stay], self.done[stay]
        return token[stay]

    def _select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def advance(self, token: Tensor) -> None:
        """Feed one token a row, (live,), and get the next logits."""
        width = self.cache.length + 1
        hidden = self.model.hidden(
            token[:, None],
            position_ids=self.position[:, None],
            attention_mask=self.mask[:, :width] if self.padded else None,
            cache=self.cache,
        )
        self.logits = self.model.lm_head(hidden[:, -1])
        self.position = self.position + 1

    def collect(self) -> Samples:
        """Cut every row at its length."""
        last = self.tokens.gather(1, self.lengths[:, None] - 1)[:, 0]
        lengths = self.lengths.tolist()
        return Samples(
            [r[:k] for r, k in zip(self.tokens.tolist(), lengths, strict=True)],
            [r[:k] for r, k in zip(self.logprobs.tolist(), lengths, strict=True)],
            torch.isin(last, self.stops).tolist(),
        )


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
