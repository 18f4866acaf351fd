"""From one reward an answer to one advantage a token.

Generalised advantage estimation is arXiv 1506.02438, eq. 16; the KL penalty
inside the reward is InstructGPT's (arXiv 2203.02155, eq. 2). All tensors are
(batch, seq) and laid out as `token_logprobs` lays them: entry t belongs to the
token at t + 1, and `mask` is one run of True in each row, the answer's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    mask: Tensor,
    kl_coef: float,
) -> Tensor:
    """The score on an answer's last token, a KL penalty on each of its tokens.

    The penalty is the k1 estimate, log-probability when sampled minus that of the
    frozen reference: summed over tokens, its mean over samples is the true KL.
    It is paid once a token, so long answers pay more.

    Args:
        scores: (batch,), one number an answer.
        ref_logprobs: None for no penalty.
    """
    rewards = torch.zeros_like(logprobs)
    if ref_logprobs is not None:
        rewards -= kl_coef * (logprobs - ref_logprobs)
    rewards = torch.where(mask, rewards, 0.0)
    after = torch.zeros_like(mask)
    after[:, :-1] = mask[:, 1:]
    return rewards + torch.where(mask & ~after, scores[:, None], 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages and the returns a value head should predict, both 0 outside.

    A_t = d_t + gamma * lam * A_(t+1) with d_t = r_t + gamma * V_(t+1) - V_t. An
    answer ends where its mask ends, cut off or not: what follows is worth 0.

    Args:
        values: what the value head says of the state before each token.
        lam: 1 sums all that follows (no bias), 0 trusts the next value.
    """
    zero = rewards.new_zeros(len(rewards))
    following, next_value, advantages = zero, zero, torch.zeros_like(rewards)
    for t in range(rewards.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = following
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean 0 and variance 1 over the entries in `mask`, 0 outside.

    Over all of a step, before it is cut into minibatches: a part's own mean and
    spread would make the update depend on the cut.
    """
    inside = x[mask]
    scaled = (x - inside.mean()) / (inside.std(correction=0) + eps)
    return torch.where(mask, scaled, 0.0)
