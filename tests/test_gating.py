"""The router, against numbers worked out by hand and against a slow loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.models import tiny_config
from torch import Tensor

from r1lite.moe.gating import Router, Routing, keep_best_groups


def router(**changes: object) -> Router:
    """A router whose logits are its input: hidden = experts, identity weight."""
    n = int(str(changes.get("n_routed_experts", 8)))
    made = Router(tiny_config(hidden_size=n, **changes)).eval()
    with torch.no_grad():
        made.weight.copy_(torch.eye(n))
    return made


def picked(routing: Routing, token: int = 0) -> dict[int, float]:
    """{expert: weight} of one token."""
    pairs = zip(routing.experts[token], routing.weights[token], strict=True)
    return {int(e): float(w) for e, w in pairs}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_v3_by_hand() -> None:
    made = router(n_routed_experts=4, routed_scaling_factor=2.5)
    scores = [0.9, 0.6, 0.5, 0.2]
    x = torch.tensor([[logit(s) for s in scores]])
    found = picked(made(x))
    # 0.9 and 0.6 win; weights 0.9/1.5 and 0.6/1.5, times 2.5
    assert found == pytest.approx({0: 1.5, 1: 1.0})
    made.e_score_correction_bias.copy_(torch.tensor([0.0, -0.5, 0.0, 0.35]))
    found = picked(made(x))
    # biased 0.9, 0.1, 0.5, 0.55: expert 3 enters, weighed by its unbiased 0.2
    assert found == pytest.approx({0: 2.5 * 0.9 / 1.1, 3: 2.5 * 0.2 / 1.1})


def test_softmax_by_hand() -> None:
    made = router(
        n_routed_experts=4,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
    )
    made.e_score_correction_bias.fill_(9.0)  # greedy looks at no bias
    made.e_score_correction_bias[0] = -9.0
    x = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).log()  # shares 0.4 0.3 0.2 0.1
    assert picked(made(x)) == pytest.approx({0: 0.4, 1: 0.3})


def test_a_group_is_worth_its_two_best_in_v3_and_its_best_in_v2() -> None:
    scores = torch.tensor([[0.9, 0.0, 0.6, 0.5, 0.2, 0.1]])
    barred = float("-inf")
    v3 = keep_best_groups(scores, n_group=3, keep=1, best=2)
    v2 = keep_best_groups(scores, n_group=3, keep=1, best=1)
    assert v3.tolist() == [[barred, barred, *scores[0, 2:4].tolist(), barred, barred]]
    assert v2.tolist() == [[*scores[0, :2].tolist(), *[barred] * 4]]


def test_negative_biased_scores_stay_in_their_group() -> None:
    made = router(n_group=4, topk_group=1)
    made.e_score_correction_bias.fill_(-0.9)  # every biased score is below 0
    groups = made(torch.randn(200, 8)).experts // 2
    assert (groups[:, 0] == groups[:, 1]).all()


def slow_route(x: Tensor, r: Router) -> list[dict[int, float]]:
    """The text of V3 section 2.1.2, one token and one expert at a time."""
    answer = []
    per_group = len(r.weight) // r.n_group
    for token in x.tolist():
        logits = [
            sum(a * b for a, b in zip(token, row, strict=True))
            for row in r.weight.tolist()
        ]
        s = [1 / (1 + math.exp(-z)) for z in logits]
        b = [a + c for a, c in zip(s, r.e_score_correction_bias.tolist(), strict=True)]
        starts = range(0, len(s), per_group)
        worth = {g: sum(sorted(b[g : g + per_group])[-2:]) for g in starts}
        kept = sorted(starts, key=lambda g: worth[g])[-r.topk_group :]
        reachable = [g + i for g in kept for i in range(per_group)]
        chosen = sorted(reachable, key=lambda e: b[e])[-r.top_k :]
        total = sum(s[e] for e in chosen)
        answer.append({e: r.scaling * s[e] / total for e in chosen})
    return answer


@pytest.mark.parametrize("groups", [(1, 1, 2), (4, 2, 3), (2, 1, 4), (4, 4, 1)])
def test_same_as_the_slow_loop(groups: tuple[int, int, int]) -> None:
    n_group, topk_group, k = groups
    made = Router(
        tiny_config(
            n_group=n_group,
            topk_group=topk_group,
            num_experts_per_tok=k,
            routed_scaling_factor=2.5,
        )
    ).eval()
    made.e_score_correction_bias.normal_(std=0.3)
    x = torch.randn(40, 32)
    routing = made(x)
    for token, want in enumerate(slow_route(x, made)):
        assert picked(routing, token) == pytest.approx(want, abs=1e-5)


def test_counts_are_tokens_per_expert_and_stay_off_outside_training() -> None:
    made = router()
    x = torch.randn(30, 8)
    routing = made(x)
    want = [int((routing.experts == e).sum()) for e in range(8)]
    assert routing.counts.tolist() == want
    assert made.counts.sum() == 0  # evaluation mode
    made.train()
    with torch.no_grad():
        made(x)
    assert made.counts.sum() == 0  # training mode, no gradient: a rollout
    made(x)
    made(x)
    assert made.counts.tolist() == [2 * c for c in want]


def test_the_bias_gets_no_gradient_and_the_weight_does() -> None:
    made = router().train()
    made(torch.randn(5, 8)).weights.square().sum().backward()
    assert made.weight.grad is not None and made.weight.grad.abs().sum() > 0
    assert not made.e_score_correction_bias.requires_grad


def test_the_bias_stays_float32_to_the_last_bit() -> None:
    made = router()
    made.e_score_correction_bias.normal_()
    before = made.e_score_correction_bias.clone()
    made.to(torch.bfloat16)
    assert made.weight.dtype == torch.bfloat16
    assert torch.equal(made.e_score_correction_bias, before)
    assert made(torch.randn(3, 8, dtype=torch.bfloat16)).weights.dtype == torch.float32


def test_a_router_can_be_copied_in_the_middle_of_training() -> None:
    made = router().train()
    made(torch.randn(5, 8))
    assert made.last is not None
    assert copy.deepcopy(made).last is None
