"""Do sampler and trainer mean the same policy? Probabilities and routing.

The ratio of a policy gradient assumes that the sampler's log-probabilities are the
trainer's. They are made by other code: a cache, one token at a time, padding on
the left. In a mixture of experts a difference in rounding can also send a token to
another expert; rollout routing replay (arXiv 2510.11370) lets the trainer take the
sampler's experts instead of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from r1lite.generation import left_pad
from r1lite.model import R1Model
from r1lite.moe.gating import Router
from r1lite.training.rollout import Rollout, collate
from r1lite.training.sft import token_logprobs

Experts = list[Tensor]


@dataclass(frozen=True)
class Agreement:
    """gap: largest and mean distance between the log-probabilities of answer tokens.

    routing: share of (token, layer) whose experts are the same set; 1 for a model
    without experts.
    """

    largest_gap: float
    mean_gap: float
    routing: float


def _routers(model: R1Model) -> list[Router]:
    """The trunk's routers, in order; the MTP module samples nothing."""
    found = (m for block in model.layers for m in block.modules())
    return [m for m in found if isinstance(m, Router)]


@contextmanager
def _recorded(routers: Sequence[Router], found: list[list[Tensor]]) -> Iterator[None]:
    """Append every router's picks (batch, seq, K) to its list in `found`."""

    def note(into: list[Tensor]) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
            into.append(out.experts.view(*args[0].shape[:2], -1))

        return hook

    pairs = zip(routers, found, strict=True)
    hooks = [r.register_forward_hook(note(into)) for r, into in pairs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Chosen:
    """Stands in for `Router.choose`: the picks are known."""

    def __init__(self, picks: Tensor) -> None:
        self.picks = picks

    def __call__(self, scores: Tensor) -> Tensor:
        return self.picks.to(scores.device)


@contextmanager
def replayed(model: R1Model, experts: Experts) -> Iterator[None]:
    """Inside, each router picks what `experts` (batch, seq, K) say; weights are own."""
    routers = _routers(model)
    try:
        for router, chosen in zip(routers, experts, strict=True):
            vars(router)["choose"] = _Chosen(chosen.flatten(0, 1))
        yield
    finally:
        for router in routers:
            vars(router).pop("choose", None)


@torch.no_grad()
def sampler_pass(
    model: R1Model, items: Sequence[Rollout], pad_id: int
) -> tuple[Tensor, Experts]:
    """The sampler's way through given answers: prefill, then token by token.

    Returns:
        hidden states of the last layer and each router's picks, both
        (batch, seq - 1, ...) and padded on the right as `collate` does.
    """
    device = model.lm_head.weight.device
    ids, mask = left_pad([r.prompt for r in items], pad_id)
    answers = left_pad([r.response[::-1] for r in items], pad_id)[0].flip(1)
    ids, mask, answers = ids.to(device), mask.to(device), answers.to(device)
    width, new = ids.size(1), answers.size(1)
    cache = model.new_cache(len(items), width + new)
    mask = torch.cat([mask, mask.new_ones(len(items), new)], 1)
    position = mask[:, :width].sum(-1)
    routers = _routers(model)
    found: list[list[Tensor]] = [[] for _ in routers]
    with _recorded(routers, found):
        states = [model.hidden(ids, attention_mask=mask[:, :width], cache=cache)]
        for t in range(new - 1):
            seen = mask[:, : width + t + 1]
            states.append(
                model.hidden(
                    answers[:, t : t + 1],
                    position_ids=(position + t)[:, None],
                    attention_mask=seen,
                    cache=cache,
                )
            )
    shift = (width - position)[:, None]
    longest = max(len(r.prompt) + len(r.response) for r in items)
    at = (torch.arange(longest - 1, device=device) + shift).clamp_max(width + new - 2)

    def right(parts: list[Tensor]) -> Tensor:
        whole = torch.cat(parts, 1)
        return whole.gather(1, at[..., None].expand(-1, -1, whole.size(-1)))

    return right(states), [right(parts) for parts in found]


@torch.no_grad()
def agreement(
    trainer: R1Model,
    sampler: R1Model,
    items: Sequence[Rollout],
    pad_id: int,
    temperature: float = 1.0,
    replay: bool = False,
) -> Agreement:
    """Compare the two on answers that `sampler` gave; `replay` forces its experts."""
    batch = collate(items, pad_id)
    _, experts = sampler_pass(sampler, items, pad_id)
    own: list[list[Tensor]] = [[] for _ in _routers(trainer)]
    where = (batch.ids, batch.prompt_lengths, batch.lengths, temperature)
    with _recorded(_routers(trainer), own):
        if replay:
            with replayed(trainer, experts):
                logprobs, mask = token_logprobs(trainer, *where)
        else:
            logprobs, mask = token_logprobs(trainer, *where)
    gap = (logprobs - batch.old_logprobs).abs()[mask]
    real = torch.arange(1, batch.ids.size(1)) < batch.lengths[:, None]
    same = [
        (a.sort(-1).values == b[0].sort(-1).values).all(-1)[real]
        for a, b in zip(experts, own, strict=True)
    ]
    share = float(torch.cat(same).float().mean()) if same else 1.0
    return Agreement(float(gap.max()), float(gap.mean()), share)
