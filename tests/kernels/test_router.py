"""The fused router in the interpreter equals r1lite.moe.gating, gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_config
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.router import _op, route, route_reference
from r1lite.moe.gating import Router, Routing

pytestmark = pytest.mark.usefixtures("kernels_on")
V2 = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}


def dense(routing: Routing) -> Tensor:
    """Weights by expert, (tokens, experts): the order of picks says nothing."""
    empty = torch.zeros_like(routing.scores)
    return empty.scatter(1, routing.experts, routing.weights)


def same(found: Routing, wanted: Routing) -> None:
    torch.testing.assert_close(found.scores, wanted.scores)
    torch.testing.assert_close(dense(found), dense(wanted))
    assert torch.equal(found.counts, wanted.counts)
    assert found.experts.dtype == wanted.experts.dtype == torch.int64


# groups, experts of a group, groups kept, picks
SHAPES = [(1, 8, 1, 3), (4, 4, 2, 3), (3, 5, 2, 6), (3, 2, 1, 2), (6, 1, 1, 1)]


@settings(max_examples=20)
@given(
    st.integers(0, 11),  # tokens
    st.sampled_from(SHAPES),
    st.booleans(),  # softmax
    st.booleans(),  # normalize
    st.booleans(),  # bias
    st.sampled_from([torch.float32, torch.float16]),
)
def test_any_shape(
    tokens: int,
    shape: tuple[int, int, int, int],
    softmax: bool,
    normalize: bool,
    biased: bool,
    dtype: torch.dtype,
) -> None:
    groups, size, keep, top_k = shape
    biased = biased and size > 1
    bias = torch.randn(groups * size) if biased else None
    start = torch.randn(tokens, groups * size, dtype=dtype)
    rest = bias, top_k, groups, keep, softmax, normalize, 2.5
    mine, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    found, wanted = route(mine, *rest), route_reference(theirs, *rest)
    same(found, wanted)
    up, score_up = torch.randn_like(wanted.scores), torch.randn_like(wanted.scores)
    for r in (found, wanted):
        ((dense(r) * up).sum() + (r.scores * score_up).sum()).backward()
    assert mine.grad is not None
    tol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(mine.grad, theirs.grad, atol=tol, rtol=tol)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
         "topk_group": 4, "routed_scaling_factor": 2.5},
        {"n_routed_experts": 16, "num_experts_per_tok": 2, "n_group": 1,
         "topk_group": 1, **V2},
        {"n_routed_experts": 20, "num_experts_per_tok": 6, "n_group": 4,
         "topk_group": 3, **V2, "topk_method": "group_limited_greedy",
         "routed_scaling_factor": 16.0},
    ],
    ids=["V3", "V2-Lite", "V2"],
)  # fmt: skip
def test_it_is_the_router_of_the_model(changes: dict[str, object]) -> None:
    router = Router(tiny_config(**changes)).eval()
    with torch.no_grad():
        router.weight.normal_()
        router.e_score_correction_bias.normal_(std=0.3)
    x = torch.randn(9, router.weight.shape[1])
    biased = router.method == "noaux_tc"
    found = route(
        x @ router.weight.T,
        router.e_score_correction_bias if biased else None,
        *(router.top_k, router.n_group, router.topk_group),
        *(router.scoring == "softmax", router.normalize, router.scaling),
    )
    same(found, router(x))


def test_a_barred_expert_never_wins_even_against_negative_scores() -> None:
    """-inf, not 0: biased scores of the kept group are below zero here."""
    bias = torch.tensor([-2.0, -2.0, -5.0, -1.5])
    found = route(torch.zeros(1, 4), bias, 2, groups=2, keep=1)
    assert sorted(found.experts[0].tolist()) == [0, 1]  # -3 beats -5.5


def test_of_equals_the_lower_index_wins() -> None:
    found = route(torch.zeros(3, 12), torch.zeros(12), 3, groups=3, keep=2)
    assert found.experts.tolist() == [[0, 1, 2]] * 3
    assert found.counts.tolist() == [3, 3, 3] + [0] * 9


def test_numbers_that_are_none_stay_inside() -> None:
    logits = torch.tensor(
        [[float("nan")] * 6, [0.0, float("nan"), 1.0, 2.0, 3.0, -1.0]]
    )
    found = route(logits, torch.zeros(6), 2)
    assert 0 <= found.experts.min() <= found.experts.max() < 6
    assert sorted(found.experts[1].tolist()) == [3, 4]
    assert found.counts.sum() == 4
    assert found.weights[0].isnan().all()  # and the loss will say so


def test_rows_of_a_wider_tensor() -> None:
    wide = torch.randn(5, 20)
    found = route(wide[:, 3:11], torch.zeros(8), 2)
    same(found, route_reference(wide[:, 3:11], torch.zeros(8), 2))


def test_the_op_is_well_formed() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    given_ = (logits, torch.randn(8), 2, 4, 2, False, True, 2.5)
    torch.library.opcheck(_op, given_)


def test_what_does_not_fit() -> None:
    for groups, keep, top_k in ((3, 1, 2), (4, 1, 3), (2, 1, 0)):
        with pytest.raises(R1Error, match=f"route: {top_k} picks in"):
            route(torch.zeros(1, 8), None, top_k, groups, keep)
