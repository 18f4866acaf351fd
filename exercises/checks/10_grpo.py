"""Checks of chapter 10's exercises. They run the reader's file, nothing else."""

from types import ModuleType

import torch
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape
from r1lite.data.chat import Response
from r1lite.tasks import Problem
from r1lite.tasks.reward import Score
from r1lite.training.policy_loss import PolicyConfig
from r1lite.training.rollout import Rollout


def check_10_1(mine: ModuleType) -> None:
    right, wrong = mine.OF_A_RIGHT_ONE, mine.OF_A_WRONG_ONE
    given(right, wrong)
    p = 3 / 8
    std, bessel = (p * (1 - p)) ** 0.5, (p * (1 - p) * 8 / 7) ** 0.5
    slips = {
        1 - p: "that is the reward minus the mean; it still has to be divided by the "
        "standard deviation",
        (1 - p)
        / (p * (1 - p)): "divide by the standard deviation, not by the variance",
        (1 - p) / bessel: "that is Bessel's standard deviation (n - 1); R1 writes the "
        "population's",
        1 / std: "subtract the group's mean first",
    }
    for value, message in slips.items():
        expect(abs(right - value) > 2e-3, message)
    expect(
        wrong < 0, "a wrong answer is worse than its group: its advantage is below 0"
    )
    close(right, (1 - p) / std, f"{right} is not the right answer's advantage", 2e-3)
    close(wrong, -p / std, f"{wrong} is not the wrong answer's advantage", 2e-3)


def check_10_2(mine: ModuleType) -> None:
    f = mine.group_advantages
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [5.0, 4.0, 4.0, 4.0]])
    found = f(rewards)
    shape(found, (2, 4), "the advantages")
    close(
        found.mean(-1),
        torch.zeros(2),
        "a group's advantages do not add up to 0: subtract the mean of its *own* group",
        1e-4,
    )
    root3 = 3**0.5
    bessel = (rewards - rewards.mean(-1, keepdim=True)) / rewards.std(-1, keepdim=True)
    expect(
        (found - bessel).abs().max() > 1e-2,
        "that is torch's default, Bessel's n - 1; take correction=0",
    )
    close(found[0], [1, -1, -1, 1], "by hand (1, 0, 0, 1) gives (1, -1, -1, 1)", 1e-3)
    close(
        found[1],
        [root3, -1 / root3, -1 / root3, -1 / root3],
        "an easy question's bonus must not depend on how easy it is: its own deviation",
        1e-3,
    )
    flat = f(torch.ones(3, 5))
    expect(
        not flat.isnan().any(), "a group that agrees became NaN: eps keeps 0 / 0 away"
    )
    close(flat, torch.zeros(3, 5), "a group that agrees has nothing to teach")
    bare = f(rewards, scale="none")
    close(
        bare[1],
        [0.75, -0.25, -0.25, -0.25],
        'scale="none" only subtracts the mean, it does not divide',
    )
    tiny = torch.tensor([[1e-4, 0.0]])
    close(
        f(tiny, eps=1e-4),
        [[1 / 3, -1 / 3]],
        "eps is added to the standard deviation, outside of the root",
        1e-3,
    )
    odd = torch.randn(7, 3)
    want = torch.stack(
        [(r - r.mean()) / (r.var(correction=0).sqrt() + 1e-4) for r in odd]
    )
    close(f(odd), want, "random groups of three differ from the slow version")


def check_10_3(mine: ModuleType) -> None:
    def run(
        ratio: list[float], a: float, config: PolicyConfig
    ) -> tuple[Tensor, Tensor]:
        old = torch.full((len(ratio),), -1.0)
        logprobs = (old + torch.tensor(ratio).log()).requires_grad_()
        r = (logprobs - old).exp()[None]
        loss = mine.token_loss(r, logprobs[None], torch.tensor([[a]]), config)
        shape(loss, (1, len(ratio)), "the loss of each token")
        (slope,) = torch.autograd.grad(loss.sum(), logprobs, allow_unused=True)
        expect(slope is not None, "no gradient reaches logprobs: too much is detached")
        return loss[0], slope

    plain = PolicyConfig()
    loss, slope = run([1.0], 2.0, plain)
    close(loss, [-2.0], "at ratio 1 the loss is minus the advantage: mind the sign")
    loss, slope = run([1.5, 0.5], 1.0, plain)
    close(
        slope[0],
        0.0,
        "ratio 1.5, advantage 1: it has moved far enough the good way and must be "
        "clipped",
    )
    close(
        slope[1],
        -0.5,
        "ratio 0.5, advantage 1: it has moved the wrong way and needs its gradient; "
        "take the minimum of the two gains",
    )
    loss, slope = run([1.5, 0.5], -1.0, plain)
    close(
        loss,
        [1.5, 0.8],
        "for a negative advantage the smaller *gain* belongs to the larger ratio: "
        "minimum of gains, not of ratios",
    )
    close(slope, [1.5, 0.0], "negative advantage: the other side is clipped")
    uneven = PolicyConfig(clip_low=0.1, clip_high=0.5)
    loss, _ = run([1.4, 0.5], 1.0, uneven)
    close(loss[0], -1.4, "clip_high 0.5 lets 1.4 pass: the bounds are not symmetric")
    loss, _ = run([0.5], -1.0, uneven)
    close(loss, [0.9], "clip_low 0.1 clips at 0.9: the bounds are not symmetric")
    weight = PolicyConfig(ratio="weight", clip_low=1.0, clip_high=4.0)
    loss, slope = run([9.0, 0.5], 1.0, weight)
    close(
        slope,
        [-5.0, -0.5],
        'ratio "weight": every token keeps a gradient, weighed by the clipped ratio, '
        "which itself has none",
    )
    _random_token_loss(mine)


def _random_token_loss(mine: ModuleType) -> None:
    ratio, logprobs = torch.rand(5, 7) * 2 + 0.1, -torch.rand(5, 7)
    a = torch.randn(5, 1)
    for kind in ("token", "sequence", "weight"):
        config = PolicyConfig(ratio=kind, clip_low=0.15, clip_high=0.3)  # type: ignore[arg-type]
        want = torch.empty(5, 7)
        for i in range(5):
            for t in range(7):
                r = float(ratio[i, t])
                cut = min(max(r, 0.85), 1.3)
                gain = min(r * a[i, 0], cut * a[i, 0])
                if kind == "weight":
                    gain = cut * a[i, 0] * logprobs[i, t]
                want[i, t] = -gain
        found = mine.token_loss(ratio, logprobs, a, config)
        close(found, want, f'config.ratio "{kind}": random tokens differ')


def check_10_4(mine: ModuleType) -> None:
    f = mine.sequence_mean
    one = f(torch.tensor([[2.0, 4.0]]), torch.tensor([[True, True]]), 1)
    shape(one, (), "the loss")
    close(one, 3.0, "one answer of 2 and 4: their mean is 3")
    padded = torch.tensor([[2.0, 4.0, 9.0, 9.0]])
    real = torch.tensor([[True, True, False, False]])
    close(
        f(padded, real, 1),
        3.0,
        "the same answer with two columns of padding gives another loss: divide by its "
        "own number of tokens, not by the width",
    )
    pair = torch.tensor([[6.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    close(
        f(pair, mask, 2),
        3.5,
        "a short and a long answer weigh alike in R1's equation: the mean of each, "
        "then of the answers",
    )
    tokens, keep = (
        torch.randn(6, 5),
        torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5])[:, None],
    )
    want = sum(tokens[i][keep[i]].mean() for i in range(6)) / 6
    close(f(tokens, keep, 6), want, "six random answers differ from the slow version")
    parts = f(tokens[:1, :1], keep[:1, :1], 6) + f(tokens[1:], keep[1:], 6)
    close(
        parts,
        want,
        "micro-batches of 1 and 5 answers do not add up to the step's mean: divide by "
        "`answers`, which counts the whole step",
    )


def _answer(question: int, right: bool, formed: bool = True) -> Rollout:
    problem = Problem("chain", 3, f"q{question}", "1", (), f"k{question}")
    parsed = Response(None, "1" if right else "2", formed, False)
    score = Score(float(right), float(formed), float(right))
    return Rollout(problem, [1], [2], [0.0], parsed, score)


def check_10_5(mine: ModuleType) -> None:
    f = mine.accepted

    def chosen(items: list[Rollout], group: int, keep: int) -> list[int]:
        found = f(items, group, keep)
        expect(isinstance(found, list), "return a list of the answers themselves")
        return [next(i for i, r in enumerate(items) if r is x) for x in found]

    mixed = [_answer(0, right) for right in (False, True, False, True)]
    found = chosen(mixed, 4, 4)
    expect(0 not in found and 2 not in found, "a wrong answer was accepted")
    expect(found == [1, 3], f"kept the answers {found}, not 1 and 3")
    bad = [_answer(0, True, formed=False), _answer(0, True)]
    expect(
        chosen(bad, 2, 2) == [1],
        "a right answer in the wrong form was accepted: the model would learn the form",
    )
    late = [_answer(0, right) for right in (False, False, True, True, True)]
    found = chosen(late, 5, 2)
    expect(
        found != [],
        "wrong answers in front used up `keep`: filter first, then cut",
    )
    expect(found == [2, 3], f"`keep` 2 of three right ones gives 2 and 3, not {found}")
    two = [_answer(0, True) for _ in range(4)] + [_answer(1, True) for _ in range(4)]
    found = chosen(two, 4, 3)
    expect(
        found == [0, 1, 2, 4, 5, 6],
        f"`keep` counts for each question, not for all of them: kept {found}",
    )
    expect(chosen([], 4, 2) == [], "no answers: an empty list")
    g = torch.Generator().manual_seed(0)
    many = [
        _answer(
            i // 5,
            bool(torch.rand(1, generator=g) < 0.5),
            bool(torch.rand(1, generator=g) < 0.8),
        )
        for i in range(35)
    ]
    want = []
    for q in range(7):
        right = [
            i
            for i in range(5 * q, 5 * q + 5)
            if many[i].score.accuracy and many[i].parsed.well_formed
        ]
        want += right[:2]
    expect(chosen(many, 5, 2) == want, "35 random answers differ from the slow version")


def check_10_6(mine: ModuleType) -> None:
    slopes, pulls = mine.SLOPES, mine.PULLS
    given(slopes, pulls)
    expect(len(slopes) == 3, "SLOPES has three numbers: of k1, of k2, of k3")
    logits = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    p = logits.log_softmax(-1)
    gap = torch.full_like(p, 1 / 3).log() - p
    kinds = (-gap, gap**2 / 2, gap.exp() - gap - 1)

    def slope(weights: Tensor, k: Tensor) -> float:
        mean = (weights * k).sum()
        return float(torch.autograd.grad(mean, logits, retain_graph=True)[0][0])

    want = [slope(p.exp().detach(), k) for k in kinds]
    whole = [slope(p.exp(), k) for k in kinds]
    expect(
        abs(slopes[0] - whole[0]) > 1e-3,
        "the weights have a gradient as well: detach them, samples are numbers",
    )
    expect(
        abs(slopes[0] + want[1]) > 1e-3 and abs(slopes[1] + want[1]) > 1e-3,
        "the sign is turned round: log r is log ref - log p",
    )
    close(
        slopes,
        torch.tensor(want),
        "SLOPES is not it: sum over all three tokens, weighted by the policy",
        1e-3,
    )
    expect(pulls in ("k1", "k2", "k3"), 'PULLS is "k1", "k2" or "k3"')
    expect(pulls != "k1", "k1's value is right and its gradient is 0: it pulls nowhere")
    expect(
        pulls != "k3",
        "k3's value is right, its gradient is that of KL(reference, policy), the other "
        "direction",
    )
