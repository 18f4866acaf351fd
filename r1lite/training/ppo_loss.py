"""The losses of PPO, each a mean over an answer's tokens.

Tensors are (tokens,): the entries of all answers one after the other. Padding
and prompts are left out before anything is computed, so nothing has to be masked
away afterwards. The clipped objective is arXiv 1707.06347, eq. 7; clipping the
value's change the same way comes with OpenAI's code for that paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.training.reward_model import ScoreModel


@dataclass
class TokenReading:
    """What a policy with a value head says of every answer token, (tokens,) each.

    logprobs of the tokens that were sampled; entropy of the distribution they were
    sampled from, in nats; values of the state before each.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def answer_mask(ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    """(batch, seq - 1), True where the token at t + 1 belongs to the answer."""
    at = torch.arange(1, ids.size(1), device=ids.device)
    return (at >= prompt_lengths[:, None]) & (at < lengths[:, None])


def read_tokens(
    model: ScoreModel, ids: Tensor, mask: Tensor, temperature: float = 1.0
) -> TokenReading:
    """One pass of the trunk, both heads; ids (batch, seq), mask (batch, seq - 1)."""
    states = model.hidden(ids[:, :-1])[mask]
    logp = (model.lm_head(states).float() / temperature).log_softmax(-1)
    picked = logp.gather(-1, ids[:, 1:][mask][:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    return TokenReading(picked, entropy, model.score(states).squeeze(-1).float())


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """-mean(min(ratio * A, clipped ratio * A)), and which tokens were clipped."""
    # +-10 is far outside any clip range: only keeps a stale token from overflowing.
    ratio = (logprobs - old_logprobs).clamp(-10, 10).exp()
    gain = ratio * advantages
    capped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(gain, capped).mean(), capped < gain


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> Tensor:
    """Half the mean squared error to the returns, the worse of two.

    The second is that of a value held within `clip` of what it was: moving further
    than that is not rewarded. So `clip` has the rewards' unit.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns) ** 2, (held - returns) ** 2)
    return 0.5 * worse.mean()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 when the values are the returns, 0 when a constant would do as well."""
    spread = returns.var(correction=0)
    return float(1 - F.mse_loss(values, returns) / spread.clamp_min(1e-8))
