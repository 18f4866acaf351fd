"""Advantages by hand, against slow float64 sums, and blind to padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.training.gae import gae, token_rewards, whiten


def slow_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> list[float]:
    """One answer, the definition: a sum of all later errors, no recursion."""
    n = len(rewards)
    ahead = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * ahead[t] - values[t] for t in range(n)]
    return [
        sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)
    ]


def ragged(
    seed: int, rows: int = 5, width: int = 9
) -> tuple[Tensor, Tensor, Tensor, list[range]]:
    """Random rewards and values in float64; answers anywhere in their rows."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    where = []
    for i in range(rows):
        a, b = torch.randperm(width + 1, generator=g)[:2].sort().values.tolist()
        mask[i, a:b] = True
        where.append(range(a, b))
    return x[0], x[1], mask, where


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_the_slow_sum(gamma: float, lam: float) -> None:
    rewards, values, mask, where = ragged(3)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, at in enumerate(where):
        want = slow_gae(rewards[i, at].tolist(), values[i, at].tolist(), gamma, lam)
        torch.testing.assert_close(advantages[i, at].tolist(), want)
        torch.testing.assert_close(returns[i, at], advantages[i, at] + values[i, at])
    assert advantages[~mask].abs().max() == returns[~mask].abs().max() == 0


def test_three_tokens_by_hand() -> None:
    """Reward 1 at the end, values 0.5, 0.6, 0.2."""
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.2]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, lam=1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.5, 0.4, 0.8]]))
    torch.testing.assert_close(returns, torch.ones(1, 3))
    advantages, _ = gae(rewards, values, mask, lam=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.1, -0.4, 0.8]]))
    advantages, _ = gae(rewards, values, mask, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.1, 0.0, 0.8]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 4), st.floats(0, 1))
def test_padding_changes_nothing(seed: int, left: int, right: int, lam: float) -> None:
    """Wider rows, and garbage wherever no answer is."""
    rewards, values, mask, _ = ragged(seed)

    def wide(x: Tensor) -> Tensor:
        big = torch.full((5, left + 9 + right), 1e6).to(x.dtype)
        if x.dtype == torch.bool:
            big[:] = False
            big[:, left : left + 9] = x
        else:
            big[:, left : left + 9] = torch.where(mask, x, -1e6)
        return big

    scores, ref = torch.arange(5.0).double(), values.flip(0)
    inside = wide(mask)
    pays = token_rewards(scores, rewards, ref, mask, 0.1)
    wide_pays = token_rewards(scores, wide(rewards), wide(ref), inside, 0.1)
    for found, want in zip(
        (wide_pays, *gae(wide_pays, wide(values), inside, 0.9, lam)),
        (pays, *gae(pays, values, mask, 0.9, lam)),
        strict=True,
    ):
        torch.testing.assert_close(found[inside], want[mask])
        assert found[~inside].abs().sum() == 0
    if int(mask.sum()) > 1:
        torch.testing.assert_close(
            whiten(wide(values), inside)[inside], whiten(values, mask)[mask]
        )


def test_the_score_is_paid_once_and_kl_on_every_token() -> None:
    logprobs = torch.tensor([[-1.0, -2, -3, -4]])
    ref = torch.tensor([[-1.5, -1, -3, 0]])
    mask = torch.tensor([[False, True, True, False]])
    found = token_rewards(torch.tensor([2.0]), logprobs, ref, mask, 0.1)
    torch.testing.assert_close(found, torch.tensor([[0, 0.1, 2.0, 0]]))
    found = token_rewards(torch.tensor([2.0]), logprobs, None, mask, 0.1)
    torch.testing.assert_close(found, torch.tensor([[0, 0, 2.0, 0]]))


def test_an_answer_that_fills_its_row_is_paid_too() -> None:
    mask = torch.tensor([[False, True, True]])
    found = token_rewards(torch.ones(1), torch.zeros(1, 3), None, mask, 0.0)
    assert found.tolist() == [[0, 0, 1]]


def test_whitening_has_mean_0_and_variance_1_inside() -> None:
    _, x, mask, _ = ragged(1)
    found = whiten(x, mask)
    assert abs(float(found[mask].mean())) < 1e-12
    assert float(found[mask].var(correction=0)) == pytest.approx(1)
    assert found[~mask].abs().max() == 0


def test_whitening_of_equal_advantages_is_0_not_nan() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert whiten(torch.full((2, 2), 0.7), mask).abs().max() == 0
