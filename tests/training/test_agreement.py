"""Sampler and trainer: the same log-probabilities, the same experts."""

from __future__ import annotations

import copy

import pytest
import torch

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.moe.gating import Router
from r1lite.tasks import stream
from r1lite.training.agreement import agreement, replayed, sampler_pass
from r1lite.training.rollout import Rollout, collate, rollouts
from r1lite.training.sft import token_logprobs

PROBLEM_AT = stream({"chain/3": 1.0, "expression/4": 1.0}, 2).problem_at


def sampled(model: R1Model, tokenizer: R1Tokenizer) -> list[Rollout]:
    """Prompts and answers of different lengths."""
    how = Sampling(20, 1.5, stop_ids=tuple(range(40)), seed=3)
    items = rollouts(model.eval(), tokenizer, [PROBLEM_AT(i) for i in range(6)], how, 3)
    assert len({len(r.prompt) for r in items}) > 1
    assert len({len(r.response) for r in items}) > 2
    return items


def disturbed(model: R1Model) -> R1Model:
    """The same weights, moved enough that some tokens change their experts."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, Router):
            module.weight.data += 0.05 * torch.randn(module.weight.shape)
    return other


def test_ragged_and_cached_sampling_agrees_with_the_trainer(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    found = agreement(model, model, items, tokenizer.pad_id, 1.5)
    assert found.largest_gap < 1e-4
    assert found.mean_gap < 1e-5
    assert found.routing > 0.999


def test_the_samplers_states_are_those_of_one_pass(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    batch = collate(items, tokenizer.pad_id)
    states, experts = sampler_pass(model, items, tokenizer.pad_id)
    with torch.no_grad():
        whole = model.hidden(batch.ids[:, :-1])
    real = torch.arange(1, batch.ids.size(1)) < batch.lengths[:, None]
    torch.testing.assert_close(states[real], whole[real], atol=1e-4, rtol=0)
    assert all(e.shape[:2] == real.shape for e in experts)


def test_replay_gives_the_trainer_the_samplers_experts(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    torch.manual_seed(0)
    items = sampled(model, tokenizer)
    trainer = disturbed(model)
    apart = agreement(trainer, model, items, tokenizer.pad_id, 1.5)
    together = agreement(trainer, model, items, tokenizer.pad_id, 1.5, replay=True)
    assert apart.routing < 0.999
    assert together.routing == 1.0


def test_replay_leaves_no_trace_and_lets_gradients_through(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    batch = collate(items, tokenizer.pad_id)
    where = (batch.ids, batch.prompt_lengths, batch.lengths)
    _, experts = sampler_pass(model, items, tokenizer.pad_id)
    with replayed(model, experts):
        logprobs, _ = token_logprobs(model, *where)
    (-logprobs.sum()).backward()
    routers = [m for m in model.layers.modules() if isinstance(m, Router)]
    assert all("choose" not in vars(r) for r in routers)
    assert all(r.weight.grad is not None and r.weight.grad.norm() > 0 for r in routers)


@pytest.mark.parametrize("policy", ["block", "selective"])
def test_what_is_computed_again_picks_the_replayed_experts(
    model: R1Model, tokenizer: R1Tokenizer, policy: str
) -> None:
    """The backward pass repeats the forward one when `replayed` has ended."""
    torch.manual_seed(0)
    items = sampled(model, tokenizer)
    batch = collate(items, tokenizer.pad_id)
    where = (batch.ids, batch.prompt_lengths, batch.lengths)
    _, experts = sampler_pass(model, items, tokenizer.pad_id)
    moved, found = disturbed(model), []
    for keep in ("none", policy):
        trainer = copy.deepcopy(moved).train()
        checkpoint_blocks_(trainer, keep)
        with replayed(trainer, experts):
            logprobs, _ = token_logprobs(trainer, *where)
        (-logprobs.sum()).backward()
        found.append(trainer)
    one, two = ([p.grad for p in m.parameters()] for m in found)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    routers = [m for m in found[1].layers.modules() if isinstance(m, Router)]
    assert all("choose" not in vars(r) for r in routers)
