"""Every gradient of PPO against a slow float64 version, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from r1lite.model import R1Model
from r1lite.training.ppo_loss import (
    answer_mask,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    read_tokens,
)
from r1lite.training.reward_model import ScoreModel, bradley_terry_loss


def numbers(count: int, seed: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, generator=g, dtype=torch.float64)


def slow_policy_slopes(
    logprobs: list[float], old: list[float], advantages: list[float], clip: float
) -> list[float]:
    """d loss / d logprob: -A * ratio / n, or 0 where clipping holds."""
    slopes = []
    for new, before, a in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(new - before)
        held = ratio > 1 + clip if a > 0 else ratio < 1 - clip
        slopes.append(0.0 if held else -a * ratio / len(logprobs))
    return slopes


def test_policy_loss_and_its_gradient() -> None:
    old, a = numbers(200, 0), numbers(200, 1)
    new = (old + numbers(200, 2, 0.3)).requires_grad_()
    loss, clipped = clipped_policy_loss(new, old, a, 0.2)
    (grad,) = torch.autograd.grad(loss, new)
    want = slow_policy_slopes(new.tolist(), old.tolist(), a.tolist(), 0.2)
    torch.testing.assert_close(grad.tolist(), want)
    assert clipped.tolist() == [w == 0 for w in want]
    assert 20 < int(clipped.sum()) < 180  # both kinds were there


def test_on_policy_loss_is_minus_the_mean_advantage() -> None:
    old, a = numbers(50, 0), numbers(50, 1)
    loss, clipped = clipped_policy_loss(old, old, a, 0.2)
    assert float(loss) == pytest.approx(-float(a.mean()))
    assert not clipped.any()


def test_a_stale_token_does_not_overflow() -> None:
    new = torch.tensor([0.0], requires_grad=True)
    loss, _ = clipped_policy_loss(new, torch.tensor([-500.0]), -torch.ones(1), 0.2)
    loss.backward()
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


def slow_value(v: float, old: float, target: float, clip: float) -> tuple[float, float]:
    """Loss of one token and its slope in v."""
    held = min(max(v, old - clip), old + clip)
    free, fixed = (v - target) ** 2 / 2, (held - target) ** 2 / 2
    if free >= fixed:
        return free, v - target
    return fixed, (held - target if held == v else 0.0)


def test_value_loss_and_its_gradient() -> None:
    old, target = numbers(200, 3), numbers(200, 4)
    new = (old + numbers(200, 5, 0.5)).requires_grad_()
    loss = clipped_value_loss(new, old, target, 0.2)
    (grad,) = torch.autograd.grad(loss, new)
    both = [
        slow_value(*x, 0.2)
        for x in zip(new.tolist(), old.tolist(), target.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(x for x, _ in both) / 200)
    torch.testing.assert_close((grad * 200).tolist(), [s for _, s in both])
    assert 20 < sum(s == 0 for _, s in both) < 180


def test_value_clip_holds_only_what_moves_towards_the_return() -> None:
    old, target = torch.zeros(2), torch.ones(2)
    new = torch.tensor([0.5, -0.5], requires_grad=True)  # towards, away
    (grad,) = torch.autograd.grad(clipped_value_loss(new, old, target, 0.2), new)
    assert grad.tolist() == [0.0, -0.75]


def test_bradley_terry_and_its_gradient() -> None:
    good, bad = numbers(40, 6).requires_grad_(), numbers(40, 7).requires_grad_()
    loss = bradley_terry_loss(good, bad)
    p = [
        1 / (1 + math.exp(b - a))
        for a, b in zip(good.tolist(), bad.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(-sum(map(math.log, p)) / 40)
    up, down = torch.autograd.grad(loss, (good, bad))
    torch.testing.assert_close(up.tolist(), [(q - 1) / 40 for q in p])
    torch.testing.assert_close(down, -up)
    assert bradley_terry_loss(good, good).item() == pytest.approx(math.log(2))


def test_answer_mask_by_hand() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    found = answer_mask(ids, torch.tensor([2, 1]), torch.tensor([4, 5]))
    assert found.tolist() == [[False, True, True, False], [True] * 4]


def test_read_tokens_gives_logprobs_entropy_and_values(model: R1Model) -> None:
    both = ScoreModel.of(model)
    torch.nn.init.normal_(both.score.weight)
    both.lm_head.weight.data *= 40  # far from uniform
    ids = torch.randint(9, 200, (3, 8), generator=torch.Generator().manual_seed(0))
    starts, ends = torch.tensor([2, 3, 1]), torch.tensor([5, 8, 4])
    mask = answer_mask(ids, starts, ends)
    with torch.no_grad():
        read = read_tokens(both, ids, mask, temperature=0.7)
    at = 0
    for row, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        for t in range(a, b):
            state = both.hidden(ids[row : row + 1, :t])[0, -1].detach()  # no padding
            p = (both.lm_head(state).detach() / 0.7).softmax(-1)
            assert float(read.logprobs[at]) == pytest.approx(
                math.log(p[ids[row, t]]), abs=1e-5
            )
            want = -sum(x * math.log(x) for x in p.tolist())
            assert float(read.entropy[at]) == pytest.approx(want, abs=1e-5)
            assert float(read.values[at]) == pytest.approx(
                both.score(state).item(), abs=1e-5
            )
            at += 1
    assert at == len(read.values)


def test_entropy_has_the_gradient_of_its_definition(model: R1Model) -> None:
    both = ScoreModel.of(model)
    ids = torch.randint(9, 200, (1, 4), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False, True, True]])
    head = both.lm_head.weight
    head.data *= 40
    fast = read_tokens(both, ids, mask).entropy.sum()
    (found,) = torch.autograd.grad(fast, head)
    want = torch.zeros_like(head, dtype=torch.float64)
    for state in both.hidden(ids[:, :-1])[mask].detach().double():
        logits = head.detach().double() @ state
        p = (logits - logits.max()).exp()
        p = p / p.sum()
        entropy = -(p * p.log()).sum()
        want += torch.outer(-p * (p.log() + entropy), state)  # dH/dz = -p (log p + H)
    torch.testing.assert_close(found.double(), want, atol=1e-6, rtol=1e-4)


def test_explained_variance_at_its_landmarks() -> None:
    returns = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns) == pytest.approx(1)
    assert explained_variance(torch.full((4,), 0.5), returns) == pytest.approx(0)
    assert explained_variance(torch.zeros(4), returns) < 0
    assert math.isfinite(explained_variance(torch.zeros(4), torch.ones(4)))
