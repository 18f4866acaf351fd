"""The policy-gradient losses around GRPO, from their common parts.

Every variant answers four questions: how is a reward turned into an advantage,
what is the ratio and how is it clipped, over what is the mean taken, which KL
estimate holds the policy near its reference. `VARIANTS` lists their answers.

Sources: GRPO, DeepSeekMath, arXiv 2402.03300, eq. 3, and R1, arXiv 2501.12948,
eq. 1; Dr. GRPO, 2503.20783; DAPO, 2503.14476; CISPO, MiniMax-M1, 2506.13585;
GSPO, 2507.18071; BNPO is TRL's name for a mean over the tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.settings import Section

# exp of a stale or mis-sampled token must not overflow. +-10 is far outside any
# clip range in use (R1's 10 is a log-ratio of 2.4).
LOG_RATIO = 10.0


class PolicyConfig(Section):
    """The four questions, as fields; the defaults are GRPO's.

    `scale` "std" divides an advantage by its group's standard deviation.
    `ratio` "token" clips each token's ratio (PPO's minimum), "sequence" one
    ratio for an answer (GSPO), "weight" clips the ratio as a constant weight of
    log p (CISPO). `aggregate` is the mean that is taken: "sequence" over answers
    of their token means, "token" over the tokens of the step, "batch" over those
    of each micro-batch, "constant" a sum over answers x `max_new_tokens`.
    `kl` "k3_ratio" multiplies k3 by the ratio (DeepSeek-V3.2): the only one
    whose gradient is that of KL(policy, reference) on old samples as well.
    """

    scale: Literal["std", "none"] = "std"
    ratio: Literal["token", "sequence", "weight"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregate: Literal["sequence", "token", "batch", "constant"] = "sequence"
    kl_coef: float = 0.0
    kl: Literal["k1", "k2", "k3", "k3_ratio"] = "k3"
    max_new_tokens: int = 64


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"scale": "none", "aggregate": "constant"},
    "dapo": {"clip_high": 0.28, "aggregate": "token"},
    "bnpo": {"aggregate": "batch"},
    # No lower bound, and an upper one of 5, as TRL recommends for CISPO.
    "cispo": {
        "ratio": "weight",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "aggregate": "token",
    },
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
}


def variant(name: str) -> dict[str, Any]:
    """The fields that make a `PolicyConfig` (or `GRPOConfig`) the named variant.

    Raises:
        R1Error: no such variant.
    """
    if name not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise R1Error(f"variant: {name!r} is unknown; choose {known}")
    return dict(VARIANTS[name])


def group_advantages(rewards: Tensor, eps: float = 1e-4, scale: str = "std") -> Tensor:
    """Compare rewards (questions, group) with the mean of their own group.

    With `scale` "std" also divide by the group's standard deviation: that of the
    population, as R1 writes it. A group whose answers all earn the same teaches
    nothing: its advantages are 0.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    if scale == "none":
        return centred
    return centred / (rewards.std(-1, keepdim=True, correction=0) + eps)


def group_outcomes(right: Tensor) -> dict[str, float]:
    """Shares of groups with nothing to compare; `right` (questions, group) bool.

    All wrong: too hard, or the policy does not explore. All right: learnt. A
    step full of either has no gradient, for opposite reasons.
    """
    return {
        "frac_all_right": float(right.all(-1).float().mean()),
        "frac_all_wrong": float((~right).all(-1).float().mean()),
    }


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: str, ratio: Tensor
) -> Tensor:
    """Per-token estimate of KL(policy, reference), all shapes alike.

    Means over samples of the policy are right for k1 (log p / r) and k3, close
    for k2. As a *loss* k1 pulls nowhere, k2 along the gradient of KL(policy,
    reference), k3 along that of KL(reference, policy). Source: J. Schulman,
    "Approximating KL divergence", 2020, for the values.
    """
    gap = (ref_logprobs - logprobs).clamp(-LOG_RATIO, LOG_RATIO)
    if kind == "k1":
        return -gap
    if kind == "k2":
        return gap.square() / 2
    k3 = gap.exp() - gap - 1
    return k3 * ratio if kind == "k3_ratio" else k3


def policy_units(lengths: Sequence[int], config: PolicyConfig) -> int:
    """How many things `policy_loss` takes its mean over; tokens of each answer.

    Micro-batches of one step must be weighed by this (`r1lite.memory.accumulate`),
    or the update depends on the split. "batch" does: it weighs them all alike.
    """
    if config.aggregate == "token":
        return sum(lengths)
    return 1 if config.aggregate == "batch" else len(lengths)


def token_loss(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, config: PolicyConfig
) -> Tensor:
    """What each token adds to the loss, before the mean; shapes broadcast.

    PPO's minimum takes the clipped gain only where it is the smaller one: a token
    that has moved too far the *good* way gets no gradient, the other way all of it.
    With `ratio` "weight" every token keeps a gradient, of bounded weight.
    """
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.ratio == "weight":
        return -clipped.detach() * advantages * logprobs
    return -torch.minimum(ratio * advantages, clipped * advantages)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: PolicyConfig,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a (micro-)batch and, for the log, means over its tokens.

    Token tensors are (batch, seq), advantages (batch,); `mask` is True on the
    tokens of the answer, at least one in the batch.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO, LOG_RATIO)
    if config.ratio == "sequence":
        mean = (log_ratio * mask).sum(-1) / mask.sum(-1).clamp_min(1)
        log_ratio = mean[:, None].expand_as(mask)
    ratio, a = log_ratio.exp(), advantages[:, None]
    per_token = token_loss(ratio, logprobs, a, config)
    kl = torch.zeros_like(per_token)
    if ref_logprobs is not None:
        token_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO, LOG_RATIO).exp()
        kl = kl_estimate(logprobs, ref_logprobs, config.kl, token_ratio)
        per_token = per_token + config.kl_coef * kl
    # Only the side that the advantage pushes towards is ever clipped.
    outside = torch.where(
        a > 0, ratio > 1 + config.clip_high, ratio < 1 - config.clip_low
    )
    shown = {"clip_frac": outside, "kl": kl, "entropy": -logprobs}
    shown["policy_gap"] = (logprobs - old_logprobs).abs()
    count = mask.sum()
    stats = {k: float((v.detach() * mask).sum() / count) for k, v in shown.items()}
    return _mean(per_token, mask, config), stats


def _mean(per_token: Tensor, mask: Tensor, config: PolicyConfig) -> Tensor:
    """The mean that `config.aggregate` names; an answer without tokens counts 0."""
    sums, lengths = (per_token * mask).sum(-1), mask.sum(-1)
    if config.aggregate == "sequence":
        return (sums / lengths.clamp_min(1)).mean()
    if config.aggregate == "constant":
        return sums.mean() / config.max_new_tokens
    return sums.sum() / lengths.sum().clamp_min(1)
