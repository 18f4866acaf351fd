"""GRPO by hand: advantages, the loss that is 0 and the gradient that is not."""

from __future__ import annotations

import pytest
import torch

from r1lite.training.grpo import GRPOConfig
from r1lite.training.policy_loss import group_advantages, policy_loss


def test_advantages_of_four_answers_by_hand() -> None:
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
    root3 = 3**0.5  # std of (1,0,0,0) is sqrt(3)/4, the deviations 3/4 and -1/4
    want = [[1, -1, -1, 1], [root3, -1 / root3, -1 / root3, -1 / root3]]
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-3, rtol=0)


def test_a_group_that_agrees_teaches_nothing() -> None:
    assert group_advantages(torch.ones(2, 4)).abs().max() == 0


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two answers of 1 and 3 tokens, advantages +1 and -1."""
    logprobs = torch.tensor([[-1.0, 0, 0], [-2.0, -0.5, -0.1]], requires_grad=True)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    return logprobs, mask, torch.tensor([1.0, -1.0])


def test_loss_is_zero_on_policy_and_its_gradient_is_not() -> None:
    logprobs, mask, advantages = batch()
    loss, stats = policy_loss(
        logprobs, logprobs.detach(), advantages, mask, GRPOConfig()
    )
    loss.backward()
    assert loss.item() == pytest.approx(0)
    # Mean over answers of token means: each answer weighs one half.
    want = torch.tensor([[-0.5, 0, 0], [1 / 6, 1 / 6, 1 / 6]])
    torch.testing.assert_close(logprobs.grad, want)
    assert stats["clip_frac"] == 0
    assert stats["policy_gap"] == 0


def test_token_mean_weighs_tokens_alike() -> None:
    logprobs, mask, advantages = batch()
    config = GRPOConfig(aggregate="token")
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, mask, config)
    loss.backward()
    want = torch.tensor([[-0.25, 0, 0], [0.25, 0.25, 0.25]])
    torch.testing.assert_close(logprobs.grad, want)


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "clipped"),
    [
        (1.0, 0.30, True),  # ratio 1.35 > 1.2 and rising is clipped
        (1.0, -0.30, False),  # ratio 0.74: the bad direction keeps its gradient
        (-1.0, -0.30, True),  # ratio 0.74 < 0.8 and falling is clipped
        (-1.0, 0.30, False),
        (1.0, 0.10, False),
    ],
)
def test_clip_is_one_sided(advantage: float, log_ratio: float, clipped: bool) -> None:
    logprobs = torch.tensor([[log_ratio - 1.0]], requires_grad=True)
    mask = torch.tensor([[True]])
    loss, stats = policy_loss(
        logprobs,
        torch.tensor([[-1.0]]),
        torch.tensor([advantage]),
        mask,
        GRPOConfig(),
    )
    loss.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad.abs().item() == 0) == clipped
    assert (stats["clip_frac"] == 1) == clipped


def test_kl_is_zero_at_the_reference_and_pulls_back_to_it() -> None:
    logprobs, mask, _ = batch()
    config = GRPOConfig(kl_coef=1.0)
    none = torch.zeros(2)
    old = logprobs.detach()
    loss, stats = policy_loss(logprobs, old, none, mask, config, old)
    loss.backward()
    assert logprobs.grad is not None
    assert stats["kl"] == 0
    assert logprobs.grad.abs().max() == 0
    logprobs.grad = None
    # The policy is surer than the reference of this token: lower it.
    loss, stats = policy_loss(logprobs, old, none, mask, config, old - 0.5)
    loss.backward()
    assert logprobs.grad is not None
    assert stats["kl"] > 0
    assert (logprobs.grad[mask] > 0).all()
    assert (logprobs.grad[~mask] == 0).all()
