"""Proximal policy optimisation, with a policy and a value on one trunk.

Source: arXiv 1707.06347 for the losses, InstructGPT (arXiv 2203.02155, eq. 2) for
the KL penalty inside the reward. R1 used GRPO instead and says why (arXiv
2501.12948 v2, appendix A.3): the value costs a second model, and with lambda at
its usual 0.95 PPO stayed far behind; at 1.0 it nearly caught up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.tasks import Problem
from r1lite.tasks.reward import RewardConfig
from r1lite.training.experience import Experience, experience
from r1lite.training.loop import Run, StageResult, Update, derive_seed, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.ppo_loss import (
    clipped_policy_loss,
    clipped_value_loss,
    read_tokens,
)
from r1lite.training.reward_model import ScoreModel
from r1lite.training.rollout import Rollout, team_rollouts

ProblemAt = Callable[[int], Problem]
RewardFunction = Callable[[list[Rollout]], Tensor]
LOGGED = ("loss", "policy_loss", "value_loss", "entropy", "clip_frac", "policy_gap")


class PPOConfig(Section):
    """Section `[ppo]`. A step samples `questions` x `group_size` answers.

    It then reads them `epochs` times, in `minibatches` updates each time. `clip` is of
    the probability ratio, `value_clip` of a value's change, in units of reward.
    `kl_coef` 0 keeps no reference model. `reward` is the verifier's, used unless
    `ppo` is given another.
    """

    steps: int = 40
    questions: int = Field(default=64, ge=1)
    group_size: int = Field(default=8, ge=1)
    epochs: int = Field(default=1, ge=1)
    minibatches: int = Field(default=2, ge=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coef: float = Field(default=0.1, ge=0)
    entropy_coef: float = 0.01
    kl_coef: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=1.0, ge=0, le=1)
    whiten: bool = True
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = 64
    reward: RewardConfig = RewardConfig()
    optim: OptimConfig = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)


def ppo(
    run: Run,
    model: R1Model,
    tokenizer: R1Tokenizer,
    config: PPOConfig,
    problem_at: ProblemAt,
    reward: RewardFunction | None = None,
    name: str = "ppo",
) -> StageResult:
    """Train `model` in place; `problem_at(i)` gives the i-th training problem.

    Args:
        reward: one number for each answer, instead of the verifier's; the log's
            "reward" is its mean, "accuracy" stays the verifier's word.

    Raises:
        R1Error: a minibatch has fewer answers than the run has ranks.
    """
    rows, ranks = config.questions * config.group_size, run.team.ranks
    if rows // config.minibatches < ranks:
        raise R1Error(
            f"ppo.minibatches: {config.minibatches} are too many for the {rows} "
            f"answers of a step on {ranks} rank(s); choose at most {rows // ranks}"
        )
    reference = None
    if config.kl_coef:
        reference = copy.deepcopy(model).to(run.team.device).eval()
        reference.requires_grad_(False)
        run.compute.prepare_(reference)
    both = ScoreModel.of(model)
    trainer = _Trainer(
        run, name, both, tokenizer, config, problem_at, reward or _verifier, reference
    )
    result = run_stage(run, name, both, config.optim, config.steps, trainer.step)
    whole = run.team.whole(both)
    assert isinstance(whole, ScoreModel)
    model.load_state_dict(whole.trunk_state())
    return result


def _verifier(items: list[Rollout]) -> Tensor:
    return torch.tensor([r.score.total for r in items])


def ppo_update(
    run: Run, model: ScoreModel, seen: Experience, config: PPOConfig
) -> dict[str, float]:
    """Gradients of one minibatch, added up over micro-batches; means for the log.

    Every term is a mean over the minibatch's answer tokens, so the cut into
    micro-batches changes nothing.
    """
    c = config

    def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
        mask = seen.mask[rows]
        with run.autocast():
            now = read_tokens(model, seen.ids[rows], mask, c.temperature)
        old, advantages = seen.old_logprobs[rows][mask], seen.advantages[rows][mask]
        before, returns = seen.old_values[rows][mask], seen.returns[rows][mask]
        policy, clipped = clipped_policy_loss(now.logprobs, old, advantages, c.clip)
        value = clipped_value_loss(now.values, before, returns, c.value_clip)
        entropy = now.entropy.mean()
        found = {
            "loss": policy + c.value_coef * value - c.entropy_coef * entropy,
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "entropy": entropy.detach(),
            "clip_frac": clipped.float().mean(),
            "policy_gap": (now.logprobs.detach() - old).abs().mean(),
        }
        return {key: (mean, len(old)) for key, mean in found.items()}

    totals = dict.fromkeys(LOGGED, int(seen.mask.sum()))
    return run.accumulate(run.micro_batches(len(seen.ids)), terms, totals)


class _Trainer:
    """The pieces of one PPO step: sample, score, estimate, update."""

    def __init__(
        self,
        run: Run,
        name: str,
        model: ScoreModel,
        tokenizer: R1Tokenizer,
        config: PPOConfig,
        problem_at: ProblemAt,
        reward: RewardFunction,
        reference: R1Model | None,
    ) -> None:
        self.run, self.name, self.model, self.tokenizer = run, name, model, tokenizer
        self.config, self.problem_at = config, problem_at
        self.reward, self.reference = reward, reference

    def step(self, i: int, update: Update) -> dict[str, float]:
        """One step; returns what the log wants."""
        c = self.config
        items = self._sample(i)
        scores = self.reward(items)
        seen, more = experience(self.run, self.model, self.reference, items, scores, c)
        values, norms = {**_describe(items, scores), **more}, []
        for epoch in range(c.epochs):
            seed = derive_seed(self.run.seed, self.name, "order", i, epoch)
            dice = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(items), generator=dice).to(seen.ids.device)
            for chosen in order.tensor_split(c.minibatches):
                values |= ppo_update(self.run, self.model, seen.rows(chosen), c)
                norms.append(update())
        return {**values, "grad_norm": max(norms)}

    def _sample(self, step: int) -> list[Rollout]:
        c = self.config
        first = step * c.questions
        problems = [self.problem_at(first + j) for j in range(c.questions)]
        how = Sampling(
            c.max_new_tokens,
            c.temperature,
            stop_ids=(self.tokenizer.eos_id,),
            seed=derive_seed(self.run.seed, self.name, step),
        )
        where = (self.run, self.model, self.tokenizer)
        return team_rollouts(*where, problems, how, c.group_size, c.reward)


def _describe(items: list[Rollout], scores: Tensor) -> dict[str, float]:
    n = len(items)
    return {
        "reward": float(scores.mean()),
        "accuracy": sum(r.score.accuracy for r in items) / n,
        "format": sum(r.score.format for r in items) / n,
        "length": sum(len(r.response) for r in items) / n,
        "think_share": sum(r.parsed.has_think for r in items) / n,
        "tokens": sum(len(r.prompt) + len(r.response) for r in items),
    }
