"""From a step's logits to each sample's new tokens, text and reason to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from r1lite.serving.sampling import Chooser, uniforms
from r1lite.serving.sequence import Sample
from r1lite.serving.types import Delta, FinishReason, TokenLogprob


@dataclass(frozen=True, eq=False)
class Row:
    """A token to pick: for `sample`, `ahead` tokens after its next one.

    source: the row of the logits; siblings of a request share their first.
    """

    sample: Sample
    source: int
    ahead: int = 0


@dataclass(frozen=True)
class Pick:
    """A token, and its log-probability if the request asked for it."""

    token: int
    logprob: TokenLogprob | None = None


def pick(rows: Sequence[Row], logits: Tensor) -> list[Pick]:
    """One token for every row, by its request's settings. logits: (_, vocab)."""
    if [row.source for row in rows] != list(range(len(logits))):
        logits = logits[[row.source for row in rows]]
    settings = [row.sample.request.params for row in rows]
    choose = Chooser(settings, logits.device)
    wanted = [i for i, p in enumerate(settings) if p.logprobs is not None]
    if choose.all_greedy and not wanted:
        return [Pick(token) for token in logits.argmax(-1).tolist()]
    chance = uniforms(
        [row.sample.request.seed for row in rows],
        [row.sample.index for row in rows],
        [row.sample.generated + row.ahead for row in rows],
    )
    tokens, logp = choose(logits, chance.to(logits.device))
    picks = [Pick(token) for token in tokens.tolist()]
    if wanted:
        most = max(settings[i].logprobs or 0 for i in wanted)
        chosen = logp.gather(-1, tokens[:, None])[wanted, 0].tolist()
        best = logp[wanted].topk(min(most, logp.shape[-1]), dim=-1)
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for i, value, (ids, values) in zip(wanted, chosen, tops, strict=True):
            n, token = settings[i].logprobs, picks[i].token
            top = tuple(zip(ids[:n], values[:n], strict=True))
            picks[i] = Pick(token, TokenLogprob(token, value, top))
    return picks


def accept(sample: Sample, picks: Sequence[Pick]) -> Delta:
    """Append what was picked, up to the token that ends the sample.

    A second pick counts only if the first is the guess it was computed after.
    """
    before, text, logprobs = len(sample.tokens), "", []
    reason: FinishReason | None = None
    for step, choice in enumerate(picks):
        if step and sample.tokens[-1] != sample.draft:
            break
        sample.tokens.append(choice.token)
        if choice.logprob:
            logprobs.append(choice.logprob)
        if choice.token in sample.request.stops:
            reason = "stop"
        else:
            text += sample.text.feed(choice.token)
            if sample.text.stopped:
                reason = "stop"
            elif sample.generated == sample.request.params.max_tokens:
                reason = "length"
        if reason:
            text += sample.text.finish()
            break
    new = tuple(sample.tokens[before:])
    return Delta(sample.index, new, text, tuple(logprobs), reason)
