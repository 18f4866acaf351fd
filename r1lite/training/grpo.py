"""Group relative policy optimisation (GRPO) with verifiable rewards.

Source: DeepSeekMath, arXiv 2402.03300, eq. 3, as used by R1 (arXiv 2501.12948,
section 2.2.1): no critic; a group of answers to one question is its own
baseline. The loss is 0 at the first update of a step by construction, because
the ratio is 1 and advantages have mean 0. The gradient is not: watch rewards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.tasks import Problem
from r1lite.tasks.reward import RewardConfig
from r1lite.training.loop import Run, StageResult, Update, derive_seed, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.rollout import Rollout, collate, team_rollouts
from r1lite.training.sft import token_logprobs

ProblemAt = Callable[[int], Problem]
STATISTICS = ("clip_frac", "kl", "policy_gap", "entropy")  # means over tokens


class GRPOConfig(Section):
    """Section `[grpo]`. A step samples `questions` x `group_size` answers.

    `aggregate` "sequence" is R1's mean over answers of their token means;
    "token" is DAPO's mean over all tokens. `dynamic_rounds` > 1 samples more
    questions while too many groups are all right or all wrong (DAPO).
    `kl_coef` 0 keeps no reference model.
    """

    steps: int = 80
    questions: int = 64
    group_size: int = 8
    minibatches: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = 64
    dynamic_rounds: int = 1
    aggregate: Literal["sequence", "token"] = "sequence"
    reward: RewardConfig = RewardConfig()
    optim: OptimConfig = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)


def group_advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Standardise rewards (questions, group) within each group.

    Population standard deviation, as R1 writes it. A group whose answers all
    earn the same teaches nothing: its advantages are 0.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True, correction=0) + eps)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: GRPOConfig,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped surrogate plus KL; token tensors are (batch, seq), advantages (batch,).

    The KL term is the k3 estimate of R1's eq. 2. Returns (loss, statistics).
    """
    # A stale or mis-sampled token must not overflow exp: +-10 is far outside
    # any clip range, so the bound changes no gradient that clipping keeps.
    log_ratio = (logprobs - old_logprobs).clamp(-10, 10)
    ratio = log_ratio.exp()
    a = advantages[:, None]
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    per_token = -torch.minimum(ratio * a, clipped * a)
    kl = torch.zeros_like(per_token)
    if ref_logprobs is not None:
        gap = (ref_logprobs - logprobs).clamp(-10, 10)
        kl = gap.exp() - gap - 1
        per_token = per_token + config.kl_coef * kl
    if config.aggregate == "token":
        loss = (per_token * mask).sum() / mask.sum()
    else:
        loss = ((per_token * mask).sum(-1) / mask.sum(-1)).mean()
    count = mask.sum()
    # Only the side that the advantage pushes towards is ever clipped.
    outside = torch.where(
        a > 0, ratio > 1 + config.clip_high, ratio < 1 - config.clip_low
    )
    stats = {
        "clip_frac": float((outside & mask).sum() / count),
        "kl": float((kl * mask).sum().detach() / count),
        "policy_gap": float((log_ratio.abs() * mask).sum().detach() / count),
        "entropy": float(-(logprobs * mask).sum().detach() / count),
    }
    return loss, stats


def grpo(
    run: Run,
    model: R1Model,
    tokenizer: R1Tokenizer,
    config: GRPOConfig,
    problem_at: ProblemAt,
) -> StageResult:
    """Train `model` in place; `problem_at(i)` gives the i-th training problem."""
    if config.questions % config.minibatches:
        raise R1Error(
            f"grpo.minibatches: {config.minibatches} does not divide "
            f"{config.questions} questions; choose a divisor"
        )
    reference = None
    if config.kl_coef:
        reference = copy.deepcopy(model).to(run.team.device).eval()
        reference.requires_grad_(False)
    trainer = _Trainer(run, model, tokenizer, config, problem_at, reference)
    return run_stage(run, "grpo", model, config.optim, config.steps, trainer.step)


class _Trainer:
    """The pieces of one GRPO step: sample, score, standardise, update."""

    def __init__(
        self,
        run: Run,
        model: R1Model,
        tokenizer: R1Tokenizer,
        config: GRPOConfig,
        problem_at: ProblemAt,
        reference: R1Model | None,
    ) -> None:
        self.run, self.model, self.tokenizer = run, model, tokenizer
        self.config, self.problem_at, self.reference = config, problem_at, reference

    def step(self, i: int, update: Update) -> dict[str, float]:
        """One step; returns what the log wants."""
        items = self._sample(i)
        group = self.config.group_size
        rewards = torch.tensor([r.score.total for r in items]).view(-1, group)
        informative = rewards.std(-1, correction=0) > 0
        values = {
            **_describe(items),
            "frac_zero_std": float((~informative).float().mean()),
        }
        advantages = group_advantages(rewards).flatten()
        keep = informative.repeat_interleave(group).nonzero()[:, 0].tolist()
        return {**values, **self._train(items, advantages, keep, update)}

    def _sample(self, step: int) -> list[Rollout]:
        """Rounds of questions until enough groups have a spread of rewards."""
        c = self.config
        items: list[Rollout] = []
        for round_ in range(c.dynamic_rounds):
            first = (step * c.dynamic_rounds + round_) * c.questions
            problems = [self.problem_at(first + j) for j in range(c.questions)]
            seed = derive_seed(self.run.seed, "grpo", step, round_)
            how = Sampling(
                c.max_new_tokens,
                c.temperature,
                stop_ids=(self.tokenizer.eos_id,),
                seed=seed,
            )
            items += team_rollouts(
                self.run,
                self.model,
                self.tokenizer,
                problems,
                how,
                c.group_size,
                c.reward,
            )
            rewards = torch.tensor([r.score.total for r in items])
            spread = rewards.view(-1, c.group_size).std(-1, correction=0) > 0
            if int(spread.sum()) >= c.questions:
                break
        return items

    def _train(
        self, items: list[Rollout], advantages: Tensor, keep: list[int], update: Update
    ) -> dict[str, float]:
        c = self.config
        tokens = sum(len(r.prompt) + len(r.response) for r in items)
        stats: dict[str, float] = {"loss": 0.0, "grad_norm": 0.0, "tokens": tokens}
        if not keep:  # every group was all right or all wrong
            stats["grad_norm"] = update()
            return stats
        if len(keep) < self.run.team.ranks:  # every rank has to compute something
            keep = list(range(len(items)))
        size = -(-len(keep) // c.minibatches)
        for at in range(0, len(keep), size):
            chosen = keep[at : at + size]
            more = self._gradients([items[k] for k in chosen], advantages[chosen])
            stats |= more | {"grad_norm": update()}
        return stats

    def _gradients(self, items: list[Rollout], advantages: Tensor) -> dict[str, float]:
        """Of the loss on these answers, in micro-batches; returns statistics."""
        answers = [len(r.response) for r in items]
        by_token = self.config.aggregate == "token"
        totals = {"loss": sum(answers) if by_token else len(items)}
        totals |= dict.fromkeys(STATISTICS, sum(answers))

        def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
            loss, stats = self._loss(items[rows], advantages[rows])
            tokens = sum(answers[rows])
            found = {k: (torch.tensor(v), tokens) for k, v in stats.items()}
            return found | {"loss": (loss, tokens if by_token else len(items[rows]))}

        return self.run.accumulate(self.run.micro_batches(len(items)), terms, totals)

    def _loss(
        self, items: list[Rollout], advantages: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        c, device = self.config, self.run.team.device
        batch = collate(items, self.tokenizer.pad_id)
        where = (
            batch.ids.to(device),
            batch.prompt_lengths.to(device),
            batch.lengths.to(device),
            c.temperature,
        )
        with self.run.autocast():
            logprobs, mask = token_logprobs(self.model, *where)
            ref = None
            if self.reference is not None:
                with torch.no_grad():
                    ref, _ = token_logprobs(self.reference, *where)
        old, weights = batch.old_logprobs.to(device), advantages.to(device)
        return policy_loss(logprobs, old, weights, mask, c, ref)


def _describe(items: list[Rollout]) -> dict[str, float]:
    n = len(items)
    return {
        "reward": sum(r.score.total for r in items) / n,
        "accuracy": sum(r.score.accuracy for r in items) / n,
        "format": sum(r.score.format for r in items) / n,
        "length": sum(len(r.response) for r in items) / n,
        "think_share": sum(r.parsed.has_think for r in items) / n,
    }
