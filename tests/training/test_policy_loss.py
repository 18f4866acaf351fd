"""Every policy loss against loops in double precision, and its units."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from r1lite.errors import R1Error
from r1lite.memory.accumulate import accumulate
from r1lite.training.policy_loss import (
    VARIANTS,
    PolicyConfig,
    group_advantages,
    group_outcomes,
    kl_estimate,
    policy_loss,
    policy_units,
    variant,
)

ROWS, SEQ = 6, 7
Numbers = list[list[float]]


def batch(seed: int = 0) -> dict[str, Any]:
    """Ragged answers, ratios from 0.4 to 2.5, both signs of advantage."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    old = -normal(ROWS, SEQ).abs() - 0.1
    lengths = torch.tensor([1, 7, 3, 6, 2, 6])
    return {
        "logprobs": old + 0.3 * normal(ROWS, SEQ),
        "old": old,
        "ref": old + 0.4 * normal(ROWS, SEQ),
        "advantages": normal(ROWS),
        "mask": torch.arange(SEQ) >= SEQ - lengths[:, None],
    }


def slow_token(
    config: PolicyConfig, ratio: float, fixed: float, a: float, logp: float
) -> float:
    """One token's surrogate; `fixed` is the ratio that no gradient sees."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.ratio == "weight":
        return -min(max(fixed, low), high) * a * logp
    return -min(ratio * a, min(max(ratio, low), high) * a)


def slow_kl(config: PolicyConfig, logp: float, ref: float, ratio: float) -> float:
    gap = ref - logp
    k3 = math.exp(gap) - gap - 1
    return {"k1": -gap, "k2": gap * gap / 2, "k3": k3, "k3_ratio": k3 * ratio}[
        config.kl
    ]


def slow_loss(config: PolicyConfig, b: dict[str, Any], logprobs: Numbers) -> float:
    """The whole loss, token by token; `b` holds the numbers that stay."""
    rows: list[list[float]] = []
    for i in range(ROWS):
        at = [t for t in range(SEQ) if b["mask"][i][t]]
        ratios = {t: math.exp(logprobs[i][t] - b["old"][i][t]) for t in at}
        token_ratios = dict(ratios)
        if config.ratio == "sequence":
            mean = math.exp(sum(logprobs[i][t] - b["old"][i][t] for t in at) / len(at))
            ratios = dict.fromkeys(at, mean)
        row = []
        for t in at:
            fixed = math.exp(b["logprobs"][i][t] - b["old"][i][t])
            value = slow_token(
                config, ratios[t], fixed, b["advantages"][i], logprobs[i][t]
            )
            kl = slow_kl(config, logprobs[i][t], b["ref"][i][t], token_ratios[t])
            row.append(value + config.kl_coef * kl)
        rows.append(row)
    if config.aggregate == "sequence":
        return sum(sum(r) / len(r) for r in rows) / len(rows)
    if config.aggregate == "constant":
        return sum(map(sum, rows)) / (len(rows) * config.max_new_tokens)
    return sum(map(sum, rows)) / sum(map(len, rows))


def slow_gradient(config: PolicyConfig, b: dict[str, Any]) -> torch.Tensor:
    """Central differences of `slow_loss`."""
    plain = {k: v.tolist() for k, v in b.items()}
    step = 1e-6
    found = torch.zeros(ROWS, SEQ, dtype=torch.float64)
    for i in range(ROWS):
        for t in range(SEQ):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in plain["logprobs"]]
                moved[i][t] += sign * step
                values.append(slow_loss(config, plain, moved))
            found[i, t] = (values[0] - values[1]) / (2 * step)
    return found


def fast(
    config: PolicyConfig, b: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    logprobs = b["logprobs"].clone().requires_grad_()
    loss, stats = policy_loss(
        logprobs, b["old"], b["advantages"], b["mask"], config, b["ref"]
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss, gradient, stats


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_ratio"])
@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_are_those_of_the_slow_loss(name: str, kl: str) -> None:
    config = PolicyConfig(**variant(name), kl_coef=0.1, kl=kl, max_new_tokens=9)
    b = batch()
    loss, gradient, _ = fast(config, b)
    plain = {k: v.tolist() for k, v in b.items()}
    assert loss.item() == pytest.approx(slow_loss(config, plain, plain["logprobs"]))
    torch.testing.assert_close(gradient, slow_gradient(config, b), atol=1e-8, rtol=0)
    assert gradient[~b["mask"]].abs().max() == 0


def test_the_batch_reaches_every_branch() -> None:
    b = batch()
    ratio = (b["logprobs"] - b["old"]).exp()[b["mask"]]
    assert (ratio > 1.28).any()
    assert (ratio < 0.8).any()
    assert (b["advantages"] > 0).any()
    assert (b["advantages"] < 0).any()


def test_the_variants_differ() -> None:
    b = batch()
    found = [fast(PolicyConfig(**variant(n)), b)[1] for n in VARIANTS]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("split", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("name", VARIANTS)
def test_any_split_gives_the_same_gradient(name: str, split: list[int]) -> None:
    config = PolicyConfig(**variant(name), kl_coef=0.1)
    b = {k: v.float() if v.is_floating_point() else v for k, v in batch().items()}
    _, whole, _ = fast(config, b)
    logprobs = b["logprobs"].clone().requires_grad_()
    pieces = list(torch.arange(ROWS).split(split))

    def lengths(at: torch.Tensor) -> list[int]:
        return b["mask"][at].sum(-1).tolist()

    def terms(at: torch.Tensor) -> dict[str, tuple[torch.Tensor, int]]:
        mask = b["mask"][at]
        loss, _ = policy_loss(
            logprobs[at], b["old"][at], b["advantages"][at], mask, config, b["ref"][at]
        )
        return {"policy": (loss, policy_units(lengths(at), config))}

    total = sum(policy_units(lengths(at), config) for at in pieces)
    accumulate(pieces, terms, {"policy": total})
    assert logprobs.grad is not None
    same = (logprobs.grad - whole).abs().max() < 1e-6
    # A mean over each micro-batch's own tokens is what "batch" means.
    assert same == (name != "bnpo" or len(split) == 1)


def test_kl_estimates_on_three_tokens_exactly() -> None:
    """Expected value and gradient, summed over all outcomes of a softmax."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.5, 0.0], dtype=torch.float64).log_softmax(-1)
    p = logits.log_softmax(-1)
    forward = (p.exp() * (p - ref)).sum()
    backward = (ref.exp() * (ref - p)).sum()
    want = torch.autograd.grad(forward, logits, retain_graph=True)[0]
    other = torch.autograd.grad(backward, logits, retain_graph=True)[0]
    ratio = (p - p.detach()).exp()
    values, slopes = {}, {}
    for kind in ("k1", "k2", "k3", "k3_ratio"):
        # The sampling weights are fixed: the gradient goes through the estimate.
        mean = (p.detach().exp() * kl_estimate(p, ref, kind, ratio)).sum()
        values[kind] = mean.item()
        slopes[kind] = torch.autograd.grad(mean, logits, retain_graph=True)[0]
    assert values["k1"] == pytest.approx(forward.item())
    assert values["k3"] == pytest.approx(forward.item())
    assert values["k2"] != pytest.approx(forward.item(), rel=0.01)
    assert slopes["k1"].abs().max() < 1e-12
    torch.testing.assert_close(slopes["k2"], want)
    torch.testing.assert_close(slopes["k3"], other)
    torch.testing.assert_close(slopes["k3_ratio"], want)
    assert (want - other).abs().max() > 0.01


def test_clip_of_ten_cuts_what_two_tenths_cut_and_more_passes() -> None:
    b = batch()
    narrow = fast(PolicyConfig(), b)[2]["clip_frac"]
    wide = fast(PolicyConfig(clip_low=10.0, clip_high=10.0), b)[2]["clip_frac"]
    assert narrow > 0.2
    assert wide == 0


def test_an_answer_without_tokens_counts_nothing() -> None:
    b = batch()
    b["mask"][0] = False
    for name in VARIANTS:
        loss, gradient, stats = fast(PolicyConfig(**variant(name)), b)
        assert math.isfinite(loss.item())
        assert gradient.isfinite().all()
        assert gradient[0].abs().max() == 0
        assert all(map(math.isfinite, stats.values()))


def test_advantages_without_a_standard_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = group_advantages(rewards, scale="none")
    want = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0] * 4])
    torch.testing.assert_close(found, want)


def test_groups_of_one_outcome_are_counted_by_which() -> None:
    right = torch.tensor([[1, 1], [0, 0], [0, 0], [0, 1]]).bool()
    assert group_outcomes(right) == {"frac_all_right": 0.25, "frac_all_wrong": 0.5}


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(R1Error, match="variant: 'ppo' is unknown; choose grpo"):
        variant("ppo")
