"""Checks of chapter 9's exercises. They run the reader's file, nothing else."""

import math
from types import ModuleType

import torch
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape


def check_9_1(mine: ModuleType) -> None:
    found = mine.A_BEATS_C
    given(found)
    slips = {
        16: "those are the odds; odds of 16 to 1 are a probability of 16 / 17",
        0.8: "A is further ahead of C than of B: the differences of rewards add",
        0.64: "that is the probability of two wins in two games; the question is about "
        "one game, whose reward difference is the sum of two",
        0.96: "that is one minus 0.2 * 0.2; odds multiply, not the chances to lose",
        8 / 9: "odds of 4 to 1 twice are 16 to 1, not 8 to 1: they multiply",
    }
    for wrong, message in slips.items():
        expect(abs(found - wrong) > 0.002, message)
    expect(
        abs(found - 16 / 17) < 0.002,
        f"{found} is not it; turn 0.8 into a difference of rewards, double it, and "
        "take the sigmoid",
    )


def check_9_2(mine: ModuleType) -> None:
    states, head = torch.randn(3, 6, 4), torch.randn(4)
    every = torch.ones(3, 6, dtype=torch.bool)
    found = mine.last_rewards(states, every, head)
    shape(found, (3,), "the rewards")
    close(
        found,
        states[:, -1] @ head,
        "without padding the last column is asked; the first token has seen nothing, "
        "and a mean is not what the head was trained for",
    )
    right = torch.tensor([6, 1, 4])
    real = torch.arange(6) < right[:, None]
    found = mine.last_rewards(states, real, head)
    want = torch.stack([states[i, n - 1] @ head for i, n in enumerate(right.tolist())])
    last_column = states[:, -1] @ head
    expect(
        not torch.allclose(found, last_column),
        "padded on the right the last column is padding: find the last real token",
    )
    for i, n in enumerate(right.tolist()):
        if n < 6:
            expect(
                abs(float(found[i] - states[i, n] @ head)) > 1e-6,
                "that is the token behind the last real one: indices start at 0",
            )
    close(found, want, "padded on the right the reward is not that of the last token")
    left = real.flip(1)
    found = mine.last_rewards(states, left, head)
    close(
        found,
        last_column,
        "padded on the left the last real token is in the last column: a count of "
        "real tokens is no place there",
    )
    found = mine.last_rewards(states[:1, :1], every[:1, :1], head)
    close(found, states[:1, 0] @ head, "one row of one token goes wrong")


def _slow_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    out = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        inside = mask[row].nonzero()[:, 0].tolist()
        for place, t in enumerate(inside):
            for k in inside[place:]:
                ahead = values[row, k + 1] if k + 1 in inside else 0.0
                delta = rewards[row, k] + gamma * ahead - values[row, k]
                out[row, t] += (gamma * lam) ** (k - t) * delta
    return out


def check_9_3(mine: ModuleType) -> None:
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.2]])
    every = torch.ones(1, 3, dtype=torch.bool)
    result = mine.gae(rewards, values, every, 1.0, 1.0)
    expect(
        isinstance(result, tuple) and len(result) == 2,
        "return two tensors: the advantages and the returns",
    )
    advantages, returns = result
    shape(advantages, (1, 3), "the advantages")
    shape(returns, (1, 3), "the returns")
    hand = "three tokens, reward 1 at the end, values 0.5, 0.6, 0.2: "
    expect(
        not torch.allclose(advantages, torch.ones(1, 3)),
        hand + "the advantage is the reward to come less the value",
    )
    close(advantages, torch.tensor([[0.5, 0.4, 0.8]]), hand + "lambda 1 is wrong")
    close(returns, torch.ones(1, 3), "returns are advantages plus values")
    zero, _ = mine.gae(rewards, values, every, 1.0, 0.0)
    close(
        zero,
        torch.tensor([[0.1, -0.4, 0.8]]),
        hand + "at lambda 0 an advantage is r + gamma * V(next) - V, of the next "
        "token, not of the one before",
    )
    half, _ = mine.gae(rewards, values, every, 0.5, 1.0)
    close(
        half,
        torch.tensor([[0.25 - 0.5, 0.5 - 0.6, 0.8]]),
        hand
        + "gamma 0.5: it weighs the next value and, with lambda, the next advantage",
    )
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 5, 8, generator=g)
    starts = torch.tensor([0, 2, 4, 1, 3])[:, None]
    ends = torch.tensor([8, 5, 5, 8, 3])[:, None]
    mask = (torch.arange(8) >= starts) & (torch.arange(8) < ends)
    kept = noise.clone()
    found, back = mine.gae(noise[0], noise[1], mask, 0.9, 0.8)
    expect(torch.equal(noise, kept), "the tensors you were given have changed")
    want = _slow_gae(noise[0], noise[1], mask, 0.9, 0.8)
    expect(
        bool((found[~mask] == 0).all()) and bool((back[~mask] == 0).all()),
        "outside the answers advantages and returns are 0",
    )
    leaky = torch.where(mask, noise, 50.0)
    found, back = mine.gae(leaky[0], leaky[1], mask, 0.9, 0.8)
    close(
        found,
        want,
        "what stands behind an answer leaks into it: both the next value and the next "
        "advantage become 0 where the mask is False",
        atol=1e-4,
    )
    close(back[mask], (want + noise[1])[mask], "the returns are wrong", atol=1e-4)


def check_9_4(mine: ModuleType) -> None:
    def both(v: float, old: float, target: float) -> tuple[float, float]:
        value = torch.tensor([v], requires_grad=True)
        loss = mine.value_loss(value, torch.tensor([old]), torch.tensor([target]), 0.2)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return float(loss), 0.0
        (slope,) = torch.autograd.grad(loss, value)
        return loss.item(), slope.item()

    loss, slope = both(0.1, 0.0, 1.0)
    close(loss, 0.405, "within the clip it is half the squared error: 0.9 * 0.9 / 2")
    close(slope, -0.9, "within the clip the gradient is the error")
    loss, slope = both(3.0, 0.0, 0.0)
    expect(
        slope != 0,
        "a value that has jumped from 0 to 3 while the return is 0 gets no gradient: "
        "the smaller of the two errors counts, so it stays there",
    )
    close(loss, 4.5, "the larger of the two errors counts: 3 * 3 / 2")
    loss, slope = both(0.5, 0.0, 1.0)
    close(
        slope,
        0.0,
        "a value that has moved further than the clip towards the return is held: no "
        "gradient",
    )
    close(loss, 0.32, "the held value is old + 0.2: its error is 0.8, half squared")
    values, old, target = torch.randn(3, 40)
    held = old + (values - old).clamp(-0.3, 0.3)
    want = torch.maximum((values - target) ** 2, (held - target) ** 2).mean() / 2
    close(
        mine.value_loss(values, old, target, 0.3),
        want,
        "over many tokens it is not half the mean of the larger errors",
    )


def check_9_5(mine: ModuleType) -> None:
    given(mine.FIRST_LENGTH, mine.WHY)
    n, why = mine.FIRST_LENGTH, mine.WHY
    expect(
        why in ("discount", "critic", "variance"),
        f"{why!r} is none of the three explanations",
    )
    expect(
        n != 45,
        "45 tokens have 44 steps between the first and the last: 0.95 ** 44 is 0.105",
    )
    expect(
        n != 47,
        "46 is already below 0.1: the first advantage is 0.95 to the power n - 1",
    )
    right = next(k for k in range(1, 999) if 0.95 ** (k - 1) < 0.1)
    expect(
        n == right,
        f"{n} is not it; with zero values the first advantage is lambda to the power "
        f"n - 1, {0.95 ** max(0, min(int(n), 9999) - 1):.3f} there",
    )
    expect(
        why != "discount",
        "gamma is 1, so nothing is discounted: with the true values both lambdas give "
        "the same advantages",
    )
    expect(
        why == "critic",
        "there is no noise in this chain: the reward is 1 each time",
    )


def check_9_6(mine: ModuleType) -> None:
    given(mine.BEST_N, mine.FIRST_JUDGE)
    n, first = mine.BEST_N, mine.FIRST_JUDGE
    expect(first in ("rises", "falls"), f"{first!r} is neither 'rises' nor 'falls'")
    expect(
        isinstance(n, int) and n >= 1 and math.log2(n).is_integer(),
        "give the n, one of 1, 2, 4, ..., 4096",
    )
    expect(
        n < 1024,
        "the judge's reward still rises there, the true quality is nearly back at 0: "
        "take the mean of the quality, not of the reward",
    )
    expect(n > 2, "there is still quality to be gained: let n grow")
    expect(
        8 <= n <= 32, f"the second judge's chosen answers are past their best at {n}"
    )
    expect(
        first == "rises",
        "with errors like the qualities themselves a larger reward means both, a "
        "larger error and a larger quality, however large n is",
    )
