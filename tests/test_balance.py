"""The bias update and the balance measures, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support.models import tiny_config, tiny_model, token_ids

from r1lite.moe.balance import (
    expert_load,
    load_entropy,
    max_violation,
    routers,
    sequence_balance_loss,
    update_bias_,
)
from r1lite.moe.gating import LastScores, Router


def router_with(counts: list[int]) -> Router:
    made = Router(tiny_config(n_routed_experts=len(counts)))
    made.counts.copy_(torch.tensor(counts))
    return made


def test_idle_experts_go_up_busy_ones_down_even_ones_stay() -> None:
    made = router_with([10, 0, 5, 5])
    made.e_score_correction_bias.copy_(torch.tensor([0.5, 0.5, 0.5, -0.5]))
    load = update_bias_(made, gamma=0.001)
    assert load.tolist() == [[10, 0, 5, 5]]
    want = torch.tensor([0.499, 0.501, 0.5, -0.5])
    torch.testing.assert_close(made.e_score_correction_bias, want)
    assert made.counts.tolist() == [0, 0, 0, 0]


def test_a_mean_that_is_no_whole_number_is_not_rounded() -> None:
    made = router_with([2, 2, 1])  # mean 5/3
    update_bias_(made, gamma=1.0)
    assert made.e_score_correction_bias.tolist() == [-1.0, -1.0, 1.0]


def test_nothing_counted_moves_nothing() -> None:
    made = router_with([0, 0, 0])
    update_bias_(made, gamma=1.0)
    assert made.e_score_correction_bias.tolist() == [0.0, 0.0, 0.0]


def test_gamma_zero_still_resets_the_counts() -> None:
    made = router_with([3, 1])
    assert update_bias_(made, gamma=0.0).tolist() == [[3, 1]]
    assert made.e_score_correction_bias.tolist() == [0.0, 0.0]
    assert made.counts.tolist() == [0, 0]


def test_load_of_a_model_counts_every_pick_of_every_layer() -> None:
    model = tiny_model(num_hidden_layers=3, num_nextn_predict_layers=1).train()
    ids = token_ids(2, 7)
    model(ids)
    load = expert_load(model)
    assert load.shape == (3, 8)  # two MoE layers and the MTP block
    assert load.sum(-1).tolist() == [28, 28, 0]  # MTP was not run
    before = [r.e_score_correction_bias.clone() for r in routers(model)]
    update_bias_(model, 0.01)
    moved = [
        not torch.equal(r.e_score_correction_bias, b)
        for r, b in zip(routers(model), before, strict=True)
    ]
    assert moved == [True, True, False]


def test_a_dense_model_has_no_load() -> None:
    model = tiny_model(first_k_dense_replace=2)
    assert update_bias_(model, 0.1).shape == (0, 0)
    assert sequence_balance_loss(model) == 0


def test_the_update_evens_out_a_skewed_router() -> None:
    made = Router(tiny_config()).train()
    x = torch.randn(256, 32)
    with torch.no_grad():
        x += 3 * made.weight[0]  # everyone likes expert 0
    made(x)
    first = max_violation(update_bias_(made, 0.02))
    for _ in range(100):
        made(x)
        last = max_violation(update_bias_(made, 0.02))
    assert first > 2.5 and last < 0.2


def with_last(scores: list[list[list[float]]], top_k: int) -> Router:
    made = Router(tiny_config(n_routed_experts=len(scores[0][0])))
    made.last = LastScores(torch.tensor(scores, requires_grad=True), top_k)
    return made


def test_sequence_loss_by_hand() -> None:
    # One sequence of two tokens, E = 2, K = 1. f = 2/(1*2) * [2, 0] = [2, 0];
    # shares 0.6 and 0.9 for expert 0, so P_0 = 0.75 and the loss is 1.5.
    made = with_last([[[0.3, 0.2], [0.9, 0.1]]], top_k=1)
    assert sequence_balance_loss(made).item() == pytest.approx(1.5)
    even = with_last([[[0.6, 0.4], [0.4, 0.6]]], top_k=1)
    assert sequence_balance_loss(even).item() == pytest.approx(1.0)


def test_sequence_loss_is_per_sequence_not_per_batch() -> None:
    # Each sequence is lopsided, the batch as a whole is even.
    made = with_last([[[0.9, 0.1]], [[0.1, 0.9]]], top_k=1)
    assert sequence_balance_loss(made).item() == pytest.approx(2 * 0.9)


def test_sequence_loss_skips_masked_tokens() -> None:
    rows = [[[0.3, 0.2], [0.9, 0.1], [0.1, 0.9]]]
    masked = sequence_balance_loss(with_last(rows, 1), torch.tensor([[1, 1, 0]]))
    assert masked.item() == pytest.approx(1.5)


def test_sequence_loss_reaches_the_router_and_is_used_once() -> None:
    model = tiny_model(num_hidden_layers=3).train()
    model(token_ids(2, 9))
    loss = sequence_balance_loss(model)
    loss.backward()
    for router in routers(model):
        assert router.weight.grad is not None and router.weight.grad.abs().sum() > 0
    assert sequence_balance_loss(model) == 0


def test_violation_and_entropy() -> None:
    load = torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0], [8, 8, 0, 0]])
    assert max_violation(load).tolist() == [0.0, 3.0, 1.0]
    assert load_entropy(load).tolist() == pytest.approx([1.0, 0.0, 0.5])
    idle = torch.zeros(1, 4, dtype=torch.int64)
    assert not math.isnan(max_violation(idle).item())
    assert not math.isnan(load_entropy(idle).item())
