"""Group relative policy optimisation (GRPO) with verifiable rewards.

Source: DeepSeekMath, arXiv 2402.03300, eq. 3, as used by R1 (arXiv 2501.12948,
section 2.2.1): no critic; a group of answers to one question is its own
baseline. The loss is 0 at the first update of a step by construction, because
the ratio is 1 and advantages have mean 0. The gradient is not: watch rewards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import Problem
from r1lite.tasks.reward import RewardConfig
from r1lite.training.loop import Run, StageResult, Update, derive_seed, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.policy_loss import group_advantages, group_outcomes
from r1lite.training.policy_update import PolicyUpdate, UpdateConfig
from r1lite.training.reference import Reference
from r1lite.training.rollout import Rollout, team_rollouts
from r1lite.training.shaping import overlong_penalty

ProblemAt = Callable[[int], Problem]
RewardFunction = Callable[[list[Rollout]], Tensor]


class GRPOConfig(UpdateConfig):
    """Section `[grpo]`. A step samples `questions` x `group_size` answers.

    The loss is `PolicyConfig`'s, with GRPO's values unless `variant` gave others.
    `dynamic_rounds` > 1 samples more questions while too many groups are all right
    or all wrong (DAPO). Answers are priced from `overlong_buffer` tokens before
    the limit on, and not trained on if cut off there with `overlong_filter`.
    `kl_coef` 0 keeps no reference model; with one, `reference_every` > 0 replaces
    it every so many steps (R1: 400).
    """

    steps: int = 80
    questions: int = 64
    group_size: int = 8
    dynamic_rounds: int = 1
    overlong_buffer: int = 0
    overlong_filter: bool = False
    reference_every: int = 0
    reward: RewardConfig = RewardConfig()
    optim: OptimConfig = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)


def grpo(
    run: Run,
    model: R1Model,
    tokenizer: R1Tokenizer,
    config: GRPOConfig,
    problem_at: ProblemAt,
    reward: RewardFunction | None = None,
    name: str = "grpo",
) -> StageResult:
    """Train `model` in place; `problem_at(i)` gives the i-th training problem.

    `reward` gives one number an answer; without it the verifier's total counts.

    Raises:
        R1Error: the minibatches do not divide the questions.
    """
    if config.questions % config.minibatches:
        raise R1Error(
            f"grpo.minibatches: {config.minibatches} does not divide "
            f"{config.questions} questions; choose a divisor"
        )
    trainer = _Trainer(run, model, tokenizer, config, problem_at, reward, name)
    return run_stage(run, name, model, config.optim, config.steps, trainer.step)


class _Trainer:
    """The pieces of one GRPO step: sample, score, standardise, update."""

    def __init__(
        self,
        run: Run,
        model: R1Model,
        tokenizer: R1Tokenizer,
        config: GRPOConfig,
        problem_at: ProblemAt,
        reward: RewardFunction | None,
        name: str,
    ) -> None:
        self.run, self.model, self.tokenizer = run, model, tokenizer
        self.config, self.problem_at, self.name = config, problem_at, name
        self.reward = reward or _verifier
        self.update = PolicyUpdate(run, model, tokenizer.pad_id, config)
        self.reference: Reference | None = None
        if config.kl_coef:
            self.reference = Reference(run, name, model, config.reference_every)

    def step(self, i: int, update: Update) -> dict[str, float]:
        """One step; returns what the log wants."""
        if self.reference is not None:
            self.update.reference = self.reference.at(i, self.model)
        items = self._sample(i)
        rewards = self._rewards(items)
        informative = rewards.std(-1, correction=0) > 0
        advantages = group_advantages(rewards, scale=self.config.scale).flatten()
        group = self.config.group_size
        keep = informative.repeat_interleave(group).nonzero()[:, 0].tolist()
        if self.config.overlong_filter:
            keep = [k for k in keep if not self._cut_off(items[k])]
        right = torch.tensor([r.score.accuracy > 0 for r in items]).view(-1, group)
        return {
            **_describe(items),
            "reward": float(rewards.mean()),
            "frac_zero_std": float((~informative).float().mean()),
            **group_outcomes(right),
            "frac_cut_off": sum(map(self._cut_off, items)) / len(items),
            **self.update.train(items, advantages, keep, update),
        }

    def _rewards(self, items: list[Rollout]) -> Tensor:
        """(questions, group), the price of length included."""
        c = self.config
        limit, buffer = c.max_new_tokens, c.overlong_buffer
        price = [overlong_penalty(len(r.response), limit, buffer) for r in items]
        return (self.reward(items) + torch.tensor(price)).view(-1, c.group_size)

    def _cut_off(self, item: Rollout) -> bool:
        return item.response[-1] != self.tokenizer.eos_id

    def _sample(self, step: int) -> list[Rollout]:
        """Rounds of questions until enough groups have a spread of rewards."""
        c = self.config
        items: list[Rollout] = []
        for round_ in range(c.dynamic_rounds):
            first = (step * c.dynamic_rounds + round_) * c.questions
            problems = [self.problem_at(first + j) for j in range(c.questions)]
            how = Sampling(
                c.max_new_tokens,
                c.temperature,
                stop_ids=(self.tokenizer.eos_id,),
                seed=derive_seed(self.run.seed, self.name, step, round_),
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
            spread = self._rewards(items).std(-1, correction=0) > 0
            if int(spread.sum()) >= c.questions:
                break
        return items


def _verifier(items: list[Rollout]) -> Tensor:
    return torch.tensor([r.score.total for r in items])


def _describe(items: list[Rollout]) -> dict[str, float]:
    n = len(items)
    return {
        "accuracy": sum(r.score.accuracy for r in items) / n,
        "format": sum(r.score.format for r in items) / n,
        "length": sum(len(r.response) for r in items) / n,
        "think_share": sum(r.parsed.has_think for r in items) / n,
        "tokens": sum(len(r.prompt) + len(r.response) for r in items),
    }
