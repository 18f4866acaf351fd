"""Rollouts: sample answers to problems and score them with verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling, sample
from r1lite.model import R1Model
from r1lite.tasks import Problem
from r1lite.tasks.reward import RewardConfig, Score, score
from r1lite.training.loop import Run, derive_seed


@dataclass
class Rollout:
    """One sampled answer. `response` holds new tokens, the stop id included."""

    problem: Problem
    prompt: list[int]
    response: list[int]
    logprobs: list[float]
    parsed: chat.Response
    score: Score


def rollouts(
    model: R1Model,
    tokenizer: R1Tokenizer,
    problems: Sequence[Problem],
    how: Sampling,
    n: int = 1,
    reward: RewardConfig | None = None,
    think: bool = False,
) -> list[Rollout]:
    """`n` answers to each problem, those of one problem side by side.

    `think` starts the answer with `<think>`, which forces reasoning.
    """
    reward = reward or RewardConfig()
    prompts = [chat.prompt(tokenizer, p.question, think=think) for p in problems]
    samples = sample(model, prompts, how, n)
    result = []
    for row, (tokens, logprobs) in enumerate(
        zip(samples.tokens, samples.logprobs, strict=True)
    ):
        problem = problems[row // n]
        parsed = chat.parse(tokenizer, tokens, forced_think=think)
        result.append(
            Rollout(
                problem,
                prompts[row // n],
                tokens,
                logprobs,
                parsed,
                score(problem, parsed, reward),
            )
        )
    return result


def team_rollouts(
    run: Run,
    model: R1Model,
    tokenizer: R1Tokenizer,
    problems: Sequence[Problem],
    how: Sampling,
    n: int = 1,
    reward: RewardConfig | None = None,
) -> list[Rollout]:
    """`rollouts` in a training stage, shared out over its ranks.

    Every rank samples for its own problems, from a whole copy of the weights:
    answers end at different steps, and an exchange would wait for the longest.

    Returns:
        all problems' answers, on every rank. The model is left in training mode.
    """
    team = run.team
    (mine,) = team.slices(len(problems))
    seed = how.seed if team.mesh is None else derive_seed(how.seed, team.rank)
    sampler = team.whole(model).eval()
    run.compute.prepare_(sampler)
    with run.autocast():
        found = rollouts(
            sampler, tokenizer, problems[mine], replace(how, seed=seed), n, reward
        )
    model.train()
    return team.gather(found)


@dataclass
class RolloutBatch:
    """Rollouts as tensors, padded on the right: what a policy loss reads.

    ids (batch, seq); prompt_lengths, lengths (batch,); old_logprobs
    (batch, seq - 1), zero outside the response.
    """

    ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    old_logprobs: Tensor


def collate(items: Sequence[Rollout], pad_id: int) -> RolloutBatch:
    """Stack rollouts of different lengths."""
    lengths = torch.tensor([len(r.prompt) + len(r.response) for r in items])
    width = int(lengths.max())
    ids = torch.full((len(items), width), pad_id, dtype=torch.long)
    old = torch.zeros(len(items), width - 1)
    for i, r in enumerate(items):
        start = len(r.prompt)
        ids[i, : lengths[i]] = torch.tensor(r.prompt + r.response)
        old[i, start - 1 : start - 1 + len(r.response)] = torch.tensor(r.logprobs)
    starts = torch.tensor([len(r.prompt) for r in items])
    return RolloutBatch(ids, starts, lengths, old)
