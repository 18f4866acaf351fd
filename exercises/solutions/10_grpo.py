"""Exercises of chapter 10: GRPO, its relatives, rejection sampling."""

import torch
from torch import Tensor

from r1lite.training.policy_loss import PolicyConfig
from r1lite.training.rollout import Rollout


# %% 10.1 | Three right of eight | predict | level 1 | 5 min
# A group of 8 answers, 3 of them right. The reward is 1 for a right answer and 0
# for a wrong one. GRPO divides by the standard deviation of the *population*, as
# R1 writes it (no Bessel correction); leave the small epsilon out.
#
# OF_A_RIGHT_ONE, OF_A_WRONG_ONE: the advantage of a right and of a wrong answer,
# to three decimals.
OF_A_RIGHT_ONE: float | None = (1 - 3 / 8) / (3 / 8 * 5 / 8) ** 0.5
OF_A_WRONG_ONE: float | None = (0 - 3 / 8) / (3 / 8 * 5 / 8) ** 0.5


# %% 10.2 | Its own baseline | fill | level 1 | 10 min | swaps r1lite.training.policy_loss.group_advantages
# rewards: (questions, group), float. Take each reward minus the mean of its own
# group. With scale="std" divide by the group's standard deviation plus `eps`: that
# of the population. With scale="none" (Dr. GRPO) do not divide. A group whose
# answers all earn the same gets zeros, never NaN. The same shape comes back.
def group_advantages(rewards: Tensor, eps: float = 1e-4, scale: str = "std") -> Tensor:
    """Advantages (questions, group)."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if scale == "none":
        return centred
    return centred / (rewards.std(-1, keepdim=True, correction=0) + eps)


# %% 10.3 | Clip one side only | fill | level 2 | 20 min | swaps r1lite.training.policy_loss.token_loss
# What each token adds to the loss. ratio and logprobs: (batch, seq); advantages:
# (batch, 1). The bounds are 1 - config.clip_low and 1 + config.clip_high.
# config.ratio "token" or "sequence": minus PPO's minimum of ratio * advantage and
# clipped ratio * advantage. config.ratio "weight" (CISPO): minus clipped ratio *
# advantage * logprobs, where the clipped ratio is a number without a gradient.
# Returns (batch, seq).
def token_loss(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: PolicyConfig
) -> Tensor:
    """The loss of each token, before the mean."""
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.ratio == "weight":
        return -clipped.detach() * advantages * logprobs
    return -torch.minimum(ratio * advantages, clipped * advantages)


# %% 10.4 | Whose mean is it? | bug | level 2 | 10 min
# The mean of R1's equation 1: first over the tokens of an answer, then over the
# answers. per_token and mask: (batch, seq), mask True on the answer's tokens.
# Several micro-batches of one step share `answers`, the number of answers of the
# whole step; their results add up to the mean of the step. This version runs, and
# its curves look fine. Find the one mistake.
def sequence_mean(per_token: Tensor, mask: Tensor, answers: int) -> Tensor:
    """This micro-batch's part of the step's loss, a scalar."""
    means = (per_token * mask).sum(-1) / mask.sum(-1)
    return means.sum() / answers


# %% 10.5 | Accepted | fill | level 2 | 15 min | swaps r1lite.training.rejection.accepted
# Rejection sampling. `items` are answers, those of one question side by side,
# `group` of them a question. Keep an answer if its accuracy is 1
# (item.score.accuracy) and its form is right (item.parsed.well_formed); of each
# question at most the first `keep`, so that easy questions do not outweigh hard
# ones. The order stays.
def accepted(items: list[Rollout], group: int, keep: int) -> list[Rollout]:
    """The answers to train on."""
    chosen: list[Rollout] = []
    for at in range(0, len(items), group):
        right = [
            r
            for r in items[at : at + group]
            if r.score.accuracy == 1.0 and r.parsed.well_formed
        ]
        chosen += right[:keep]
    return chosen


# %% 10.6 | Where a KL loss pulls | measure | level 3 | 25 min
# A policy with logits (1, 0, 0) over three tokens, the reference uniform. Sum over
# the three tokens, weighted with the policy's probabilities as *numbers* (that is
# what sampling does): the expected gradient of an estimate with respect to the
# first logit, in float64. With log r = log ref - log p:
#   k1 = -log r, k2 = (log r)^2 / 2, k3 = r - log r - 1.
#
# SLOPES: the three gradients of k1, k2, k3, each to four decimals.
# PULLS: which of them is the gradient of KL(policy, reference): "k1", "k2" or "k3".
_logits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
_p = _logits.log_softmax(-1)
_gap = torch.full_like(_p, 1 / 3).log() - _p
SLOPES: list[float] | None = [
    float(
        torch.autograd.grad((_p.exp().detach() * k).sum(), _logits, retain_graph=True)[
            0
        ][0]
    )
    for k in (-_gap, _gap**2 / 2, _gap.exp() - _gap - 1)
]
PULLS: str | None = "k2"
