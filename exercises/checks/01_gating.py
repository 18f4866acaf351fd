"""Checks of chapter 01's exercises. They run the reader's file, nothing else."""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config
from r1lite.moe.gating import LastScores, Router

SEVEN_TOKENS = 7


def router(**changes: Any) -> Router:
    """A small router; `changes` are fields of R1Config."""
    fields = {"hidden_size": 10, "n_routed_experts": 12, **changes}
    return Router(R1Config.preset("nano").with_(**fields))


# 1.1


def check_1_1(mine: ModuleType) -> None:
    flat, lead = mine.LEFT_WHEN_FLAT, mine.LEAD_FOR_HALF
    given(flat, lead)
    slips = {
        1 / 64: "that is one gate; the token has two",
        2 / 62: "the softmax is taken over all 64 experts, the chosen ones too",
        1.0: "without renormalisation the chosen gates do not add up to 1",
        3.125: "give the fraction, not per cent",
        3.13: "give the fraction, not per cent",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(flat, wrong, rel_tol=1e-3), f"LEFT_WHEN_FLAT: {why}")
    close(flat, 2 / 64, "LEFT_WHEN_FLAT: two equal shares of 64", atol=1e-3)
    slips = {
        math.log(62): "one chosen expert alone would need that; there are two",
        math.log(32): "half of the mass is 62 others, not 64",
        math.log(64): "half of the mass is shared by two chosen experts",
        31.0: "that is exp(d); take its logarithm",
        math.log10(31): "the softmax uses e, so take the natural logarithm",
        math.log2(31): "the softmax uses e, so take the natural logarithm",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(lead, wrong, abs_tol=6e-3), f"LEAD_FOR_HALF: {why}")
    close(lead, math.log(31), "LEAD_FOR_HALF: solve 2 exp(d) = 62", atol=6e-3)


# 1.2


def chosen(mine: ModuleType, made: Router, scores: Tensor) -> list[set[int]]:
    """The reader's choice as one set per token, its form checked."""
    before = scores.clone()
    found = mine.choose(made, scores)
    shape(found, (len(scores), made.top_k), "experts")
    expect(found.dtype == torch.int64, f"experts: {found.dtype}, int64 is asked")
    expect(
        torch.equal(scores, before),
        "the scores you were given have changed, and the weights are made from "
        "them; write `scores = scores + ...`, not `+=`",
    )
    return [set(row) for row in found.tolist()]


def slow_choose(made: Router, scores: Tensor) -> list[set[int]]:
    """The text of V3 section 2.1.2, one token at a time."""
    size = scores.shape[-1] // made.n_group
    v3, grouped = made.method == "noaux_tc", made.method != "greedy"
    bias = made.e_score_correction_bias.tolist()
    answer = []
    for row in scores.tolist():
        b = [s + c if v3 else s for s, c in zip(row, bias, strict=True)]
        starts = range(0, len(b), size)
        worth = {g: sum(sorted(b[g : g + size])[-2 if v3 else -1 :]) for g in starts}
        kept = sorted(starts, key=lambda g: worth[g], reverse=True)
        kept = kept[: made.topk_group] if grouped else list(starts)
        open_ = [g + i for g in kept for i in range(size)]
        answer.append(set(sorted(open_, key=lambda e: b[e])[-made.top_k :]))
    return answer


def check_1_2(mine: ModuleType) -> None:
    made = router(num_experts_per_tok=3)
    scores = torch.rand(SEVEN_TOKENS, 12)
    best = [set(row) for row in scores.topk(3).indices.tolist()]
    expect(
        chosen(mine, made, scores) == best,
        "with no bias and one group the choice is simply the top K",
    )
    made.e_score_correction_bias[4] = 2.0
    expect(
        all(4 in picks for picks in chosen(mine, made, scores)),
        "expert 4 has a bias of +2 and must be chosen by every token; add "
        "e_score_correction_bias before the top K",
    )
    made.method = "greedy"
    expect(
        chosen(mine, made, scores) == best,
        'the method is "greedy", but the bias still counts; it is for "noaux_tc" only',
    )
    _groups_by_hand(mine)
    _negative_scores(mine)
    for method in ("noaux_tc", "group_limited_greedy", "greedy"):
        for n_group, keep, k in ((4, 2, 3), (3, 1, 4), (6, 6, 2), (2, 1, 5)):
            made = router(
                n_group=n_group,
                topk_group=keep,
                num_experts_per_tok=k,
                topk_method=method,
            )
            made.e_score_correction_bias.normal_(std=0.5)
            scores = torch.rand(40, 12)
            expect(
                chosen(mine, made, scores) == slow_choose(made, scores),
                f"{method} with {keep} of {n_group} groups and K = {k} differs from "
                "the slow version",
            )
    expect(chosen(mine, made, torch.rand(0, 12)) == [], "no tokens, no experts")


def _groups_by_hand(mine: ModuleType) -> None:
    """Group 0 holds the single best expert, group 1 the best two together."""
    row = torch.tensor([[0.9, 0.05, 0.6, 0.5, 0.2, 0.1]])
    size = {"n_routed_experts": 6, "n_group": 3, "topk_group": 1}
    v3 = chosen(mine, router(**size), row)[0]
    expect(
        v3 != {0, 2},
        "0 and 2 are in different groups, but only one group may be kept",
    )
    expect(
        v3 == {2, 3},
        "V3: a group is worth the sum of its two best experts, here 0.6 + 0.5 "
        "against 0.9 + 0.05",
    )
    v2 = chosen(mine, router(**size, topk_method="group_limited_greedy"), row)[0]
    expect(v2 == {0, 1}, "V2: a group is worth its one best expert, here 0.9")
    made = router(**size)
    made.e_score_correction_bias[4:] = 1.0
    expect(
        chosen(mine, made, row)[0] == {4, 5},
        "what a group is worth is summed from unbiased scores; use the biased ones",
    )


def _negative_scores(mine: ModuleType) -> None:
    made = router(n_group=4, topk_group=1)
    made.e_score_correction_bias.fill_(-1.5)
    groups = [{e // 3 for e in p} for p in chosen(mine, made, torch.rand(50, 12))]
    expect(
        all(len(g) == 1 for g in groups),
        "with a bias of -1.5 tokens leave their group: a barred expert must get "
        "-inf, not 0, which beats a negative score",
    )


# 1.3


def stack_of(*counts: list[int]) -> nn.ModuleList:
    """Routers that have counted these tokens."""
    made = nn.ModuleList(router(n_routed_experts=len(c)) for c in counts)
    for one, c in zip(made, counts, strict=True):
        assert isinstance(one, Router)
        one.counts.copy_(torch.tensor(c))
        one.last = LastScores(torch.rand(1, 1, len(c)), 1, *[torch.zeros(1, 1, 1)] * 2)
    return made


def biases(model: nn.ModuleList) -> list[list[float]]:
    return [
        [round(float(b), 6) for b in r.e_score_correction_bias.tolist()]
        for r in model
        if isinstance(r, Router)
    ]


def check_1_3(mine: ModuleType) -> None:
    counts = [10, 0, 5, 5], [1, 2, 2, 3]
    model = stack_of(*counts)
    load = mine.update_bias_(model, 0.25)
    shape(load, (2, 4), "the returned load")
    expect(
        load.tolist() == [list(c) for c in counts],
        "the returned load is not the one the update was based on; read it before "
        "the counts are reset",
    )
    first, second = biases(model)
    expect(
        first != [0.25, -0.25, 0.0, 0.0],
        "the busy expert went up and the idle one down: the sign is reversed, "
        "take mean minus load",
    )
    expect(
        set(map(abs, first)) <= {0.0, 0.25},
        f"after one update with gamma 0.25 the biases are {first}: each moves by "
        "exactly gamma, whatever the size of its error (the sign of it)",
    )
    expect(first == [-0.25, 0.25, 0.0, 0.0], f"loads 10 0 5 5 gave {first}")
    expect(
        second == [0.25, 0.0, 0.0, -0.25],
        f"the second router gave {second}: each router is compared with its own mean",
    )
    made = [r for r in model if isinstance(r, Router)]
    expect(all(int(r.counts.sum()) == 0 for r in made), "the counts are not reset")
    expect(all(r.last is None for r in made), "`last` is not set to None")

    model = stack_of([2, 2, 1])
    mine.update_bias_(model, 1.0)
    expect(
        biases(model) == [[-1.0, -1.0, 1.0]],
        f"loads 2 2 1 (mean 5/3) gave {biases(model)[0]}: the mean was rounded to a "
        "whole number",
    )
    model = stack_of([3, 1])
    mine.update_bias_(model, 1.0)
    mine.update_bias_(model, 1.0)
    expect(
        biases(model) == [[-1.0, 1.0]],
        "an update without any counted token must move nothing, and an earlier bias "
        "must be kept",
    )
    model = stack_of([3, 1])
    mine.update_bias_(model, 0.0)
    expect(
        biases(model) == [[0.0, 0.0]] and int(model[0].counts.sum()) == 0,
        "with gamma = 0 no bias moves, but the counts are still reset",
    )
    shape(mine.update_bias_(nn.ModuleList(), 0.1), (0, 0), "the load of no routers")


# 1.4


def last_of(rows: list[list[list[float]]], top_k: int = 1) -> LastScores:
    """Scores as given; the picks that were made are deliberately others."""
    scores = torch.tensor(rows, requires_grad=True)
    picks = scores.topk(top_k, -1, largest=False).indices
    return LastScores(scores, top_k, scores.log(), picks)


def slow_sequence(last: LastScores, mask: Tensor) -> Tensor:
    """V3's equations 17 to 20, one sequence, token and expert at a time."""
    per_sequence = []
    for s, m in zip(last.scores, mask.tolist(), strict=True):
        real = [t for t, keep in enumerate(m) if keep]
        total = torch.zeros(())
        for i in range(s.shape[-1]):
            hits = [i in s[t].topk(last.top_k).indices.tolist() for t in real]
            f = s.shape[-1] * sum(hits) / (last.top_k * max(len(real), 1))
            for t in real:
                total = total + f * s[t, i] / s[t].sum() / len(real)
        per_sequence.append(total)
    return torch.stack(per_sequence).mean()


def check_1_4(mine: ModuleType) -> None:
    last = last_of([[[0.3, 0.2], [0.9, 0.1]]])
    found = mine.sequence_loss(last)
    shape(found, (), "the loss")
    slips = {
        1.2: "P is a mean of raw scores; divide each token's scores by their sum",
        0.75: "the factor E / K is missing from f",
        0.5: "f counts the picks that were made (last.experts); the paper takes the "
        "top K of the unbiased scores",
        3.0: "f or P is summed over the tokens, not averaged",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(found.item(), wrong, abs_tol=1e-4), why)
    close(found, 1.5, "two tokens, both of expert 0, shares 0.6 and 0.9: 2 * 0.75")

    found = mine.sequence_loss(last_of([[[0.9, 0.1]], [[0.1, 0.9]]]))
    expect(
        not math.isclose(found.item(), 1.0, abs_tol=1e-4),
        "each of two sequences is lopsided and the batch is even: your loss sees "
        "the batch; average over sequences last",
    )
    close(found, 1.8, "two lopsided sequences of one token: 2 * 0.9 each")
    found = mine.sequence_loss(last_of([[[0.3, 0.3, 0.2, 0.2]]], top_k=2))
    close(found, 1.2, "K = 2 of E = 4: f = [2, 2, 0, 0], so 2 * 0.3 + 2 * 0.3")
    _masks(mine)
    _gradient(mine)

    last = last_of(torch.rand(3, 5, 7).add(0.05).tolist(), top_k=2)
    every = torch.ones(3, 5, dtype=torch.bool)
    close(
        mine.sequence_loss(last),
        slow_sequence(last, every),
        "3 sequences, 5 tokens, 7 experts, K = 2: differs from the slow version",
    )
    for mask in (torch.rand(3, 5) < 0.6, (torch.rand(3, 5) < 0.6).float()):
        mask[0, 0] = 1
        close(
            mine.sequence_loss(last, mask),
            slow_sequence(last, mask),
            "with a random mask: differs from the slow version",
        )


def _masks(mine: ModuleType) -> None:
    rows = [[[0.3, 0.2], [0.9, 0.1], [0.1, 0.9]]]
    found = mine.sequence_loss(last_of(rows), torch.tensor([[True, True, False]]))
    slips = {
        2 / 3: "n counts the padding: divide by the number of real tokens",
        1.0: "n counts the padding in P or in f: divide by the number of real tokens",
        46 / 45: "padding still counts in f and in P",
        16 / 15: "padding still counts in P",
        7 / 6: "padding still counts in f",
    }
    for wrong, why in slips.items():
        expect(not math.isclose(found.item(), wrong, abs_tol=2e-3), why)
    close(found, 1.5, "the third token is padding and must not count")
    empty = mine.sequence_loss(
        last_of([[[0.3, 0.2]], [[0.8, 0.2]]]), torch.tensor([[False], [True]])
    )
    expect(
        not empty.isnan(),
        "a sequence of padding alone gives NaN: clamp the number of real tokens to 1",
    )
    close(empty, 0.8, "a sequence of padding alone counts as 0 in the mean")


def _gradient(mine: ModuleType) -> None:
    last = last_of(torch.rand(2, 4, 5).add(0.05).tolist(), top_k=2)
    found = mine.sequence_loss(last)
    expect(
        found.requires_grad,
        "no gradient reaches the scores: detach them for f only, not for P",
    )
    found.backward()
    grad = last.scores.grad
    assert grad is not None
    (wanted,) = torch.autograd.grad(slow_sequence(last, torch.ones(2, 4)), last.scores)
    close(grad, wanted, "the value is right, but its gradient is not")


# 1.5


def check_1_5(mine: ModuleType) -> None:
    scores = torch.tensor([[0.9, 0.6, 0.5, 0.2]])
    flat = torch.zeros(4)
    weights, experts = mine.weigh(scores, flat, 2, 2.5)
    shape(weights, (1, 2), "weights")
    shape(experts, (1, 2), "experts")
    close(weights.sum(), 2.5, "the weights of a token must add up to `scaling`")
    bias = torch.tensor([0.0, -0.5, 0.0, 0.35])
    weights, experts = mine.weigh(scores, bias, 2, 2.5)
    by_expert = dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True))
    expect(
        set(by_expert) == {0, 3},
        f"experts {sorted(by_expert)} were chosen: the bias no longer takes part in "
        "the choice, where it belongs",
    )
    expect(
        not math.isclose(by_expert[3], 2.5 * 0.55 / 1.45, abs_tol=1e-4),
        "the weights still come from the biased scores; gather them from the "
        "unbiased ones",
    )
    close(
        sum(by_expert.values()),
        2.5,
        "with a bias the weights no longer add up to `scaling`: renormalise the "
        "unbiased scores of the chosen experts",
        atol=1e-4,
    )
    close(by_expert[3], 2.5 * 0.2 / 1.1, "expert 3 should weigh 0.2 / (0.9 + 0.2)")
    scores = torch.rand(9, 6, requires_grad=True)
    bias = torch.randn(6)
    weights, experts = mine.weigh(scores, bias, 3, 1.0)
    expect(weights.requires_grad, "the router must learn: keep the weights' gradient")
    plain = scores.detach()
    for t in range(9):
        picked = (plain[t] + bias).topk(3).indices
        want = {int(e): float(plain[t, e] / plain[t, picked].sum()) for e in picked}
        found = dict(zip(experts[t].tolist(), weights[t].tolist(), strict=True))
        expect(found.keys() == want.keys(), "other experts than the top K were chosen")
        for e, weight in found.items():
            close(weight, want[e], "a weight differs from the slow version")


# 1.6


def check_1_6(mine: ModuleType) -> None:
    given(mine.GREEDY_GAIN, mine.SAMPLED_GAIN, mine.WHY)
    close(
        mine.GREEDY_GAIN,
        0.0,
        "GREEDY_GAIN: softmax(logits / t) has the same top two for every t > 0; "
        "count them again",
        atol=1e-3,
    )
    logits = mine.skewed_logits()
    shape(logits, (4096, 16), "skewed_logits()")
    gain = sampled_entropy(logits, 4.0) - sampled_entropy(logits, 0.25)
    found = mine.SAMPLED_GAIN
    expect(abs(found + gain) > 0.02, "SAMPLED_GAIN: t = 4 minus t = 0.25, not reversed")
    expect(
        abs(found - gain * math.log(16)) > 0.02,
        "SAMPLED_GAIN: in nats; load_entropy divides by log(16)",
    )
    expect(
        abs(found) > 0.02,
        "SAMPLED_GAIN: close to 0, so the choice was greedy; draw the experts",
    )
    close(found, gain, "SAMPLED_GAIN: not what this experiment gives", atol=0.012)
    expect(mine.WHY in ("A", "B", "C"), 'WHY: give the letter "A", "B" or "C"')
    expect(mine.WHY != "A", "WHY: with A the greedy router would have gained too")
    expect(mine.WHY != "C", "WHY: dividing by t > 0 cannot reorder anything")


def sampled_entropy(logits: Tensor, t: float) -> float:
    draw = torch.multinomial((logits / t).softmax(-1), 2)
    share = draw.flatten().bincount(minlength=16).double() / draw.numel()
    return float(torch.special.entr(share).sum()) / math.log(16)
