"""The bias update, the balance losses and the balance measures, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.models import tiny_config, tiny_model, token_ids
from torch import Tensor

from r1lite.moe.balance import (
    balance_loss,
    expert_load,
    load_entropy,
    max_violation,
    router_z_loss,
    routers,
    sequence_balance_loss,
    switch_balance_loss,
    update_bias_,
)
from r1lite.moe.gating import LastScores, Router
from r1lite.moe.losses import sequence_loss, switch_loss, z_loss
from r1lite.training.loop import BalanceConfig


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


def last_scores(
    rows: list[list[list[float]]],
    top_k: int,
    experts: list[list[list[int]]] | None = None,
) -> LastScores:
    """What a router would have kept: logits are the scores' logarithms."""
    scores = torch.tensor(rows, requires_grad=True)
    picks = torch.tensor(experts) if experts else scores.topk(top_k, -1).indices
    return LastScores(scores, top_k, scores.log(), picks)


def with_last(scores: list[list[list[float]]], top_k: int) -> Router:
    made = Router(tiny_config(n_routed_experts=len(scores[0][0])))
    made.last = last_scores(scores, top_k)
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


def test_switch_loss_by_hand() -> None:
    # E = 2, K = 1: three of four tokens go to expert 0, f = [0.75, 0.25];
    # mean shares P = [0.6, 0.4]; 2 * (0.45 + 0.1) = 1.1.
    rows = [[[0.9, 0.1], [0.7, 0.3]], [[0.6, 0.4], [0.2, 0.8]]]
    assert switch_loss(last_scores(rows, 1)).item() == pytest.approx(1.1)
    # Without the last token: f = [1, 0], P_0 = 2.2 / 3.
    mask = torch.tensor([[True, True], [True, False]])
    found = switch_loss(last_scores(rows, 1), mask).item()
    assert found == pytest.approx(2 * 2.2 / 3)


def test_switch_loss_looks_at_the_batch_where_v3_looks_at_each_sequence() -> None:
    rows = [[[0.9, 0.1]], [[0.1, 0.9]]]
    assert switch_loss(last_scores(rows, 1)).item() == pytest.approx(1.0)
    assert sequence_loss(last_scores(rows, 1)).item() == pytest.approx(1.8)


def test_switch_loss_counts_the_picks_that_were_made() -> None:
    # Scores prefer expert 0, a bias sent the token to expert 1: f = [0, 1].
    biased = last_scores([[[0.8, 0.2]]], 1, experts=[[[1]]])
    assert switch_loss(biased).item() == pytest.approx(2 * 0.2)
    assert sequence_loss(biased).item() == pytest.approx(2 * 0.8)


def test_switch_loss_with_two_picks_is_one_when_even() -> None:
    rows = [[[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]]]
    assert switch_loss(last_scores(rows, 2)).item() == pytest.approx(1.0)


def test_z_loss_by_hand() -> None:
    # exp(logits) sum to 1 and to 4: squared logs 0 and log(4)^2.
    rows = [[[0.5, 0.5], [3.0, 1.0]]]
    last = last_scores(rows, 1)
    assert z_loss(last).item() == pytest.approx(math.log(4) ** 2 / 2)
    masked = z_loss(last, torch.tensor([[False, True]]))
    assert masked.item() == pytest.approx(math.log(4) ** 2)
    assert z_loss(last, torch.tensor([[False, False]])) == 0


@pytest.mark.parametrize("loss", [sequence_loss, switch_loss, z_loss])
def test_a_full_mask_is_no_mask(loss: Callable[..., Tensor]) -> None:
    last = last_scores(torch.rand(3, 5, 8).tolist(), 2)
    full = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(loss(last, full), loss(last))


@pytest.mark.parametrize(
    "loss", [sequence_balance_loss, switch_balance_loss, router_z_loss]
)
def test_a_loss_reaches_every_router_until_the_bias_update(
    loss: Callable[..., Tensor],
) -> None:
    model = tiny_model(num_hidden_layers=3).train()
    model(token_ids(2, 9))
    found = loss(model)
    assert loss(model) == found  # asking does not use it up
    found.backward()
    for router in routers(model):
        assert router.weight.grad is not None and router.weight.grad.abs().sum() > 0
    update_bias_(model, 0.0)
    assert loss(model) == 0


@pytest.mark.parametrize(
    "loss", [sequence_balance_loss, switch_balance_loss, router_z_loss]
)
def test_a_mask_fits_the_mtp_block_too(loss: Callable[..., Tensor]) -> None:
    model = tiny_model(num_nextn_predict_layers=1).train()
    ids = token_ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    hidden = model(ids, attention_mask=mask).hidden
    alone = loss(model, mask)
    model.mtp_hidden(ids, hidden, attention_mask=mask)
    (block,) = routers(model)[1:]
    assert block.last is not None and block.last.scores.shape == (2, 8, 8)
    trunk, block.last, kept = alone, None, block.last
    assert loss(model, mask) == trunk
    block.last = kept
    both = loss(model, mask)
    (first,) = routers(model)[:1]
    first.last = None
    torch.testing.assert_close(both, (trunk + loss(model, mask[:, :-1])) / 2)


def test_a_router_keeps_its_logits_and_picks_by_sequence() -> None:
    made = Router(tiny_config()).train()
    routing = made(torch.randn(2, 5, 32))
    assert made.last is not None
    torch.testing.assert_close(made.last.logits.sigmoid(), made.last.scores)
    assert made.last.logits.shape == (2, 5, 8)
    assert torch.equal(made.last.experts, routing.experts.view(2, 5, 2))


def test_descending_the_switch_loss_evens_the_load() -> None:
    made = Router(tiny_config(scoring_func="softmax", topk_method="greedy")).train()
    x = torch.randn(256, 32)
    with torch.no_grad():
        x += 3 * made.weight[0]
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    violations = []
    for _ in range(60):
        made(x)
        loss = switch_balance_loss(made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        violations.append(max_violation(update_bias_(made, 0.0)).item())
    assert violations[0] > 2.5 and violations[-1] < 0.5


def test_balance_loss_is_the_weighted_sum() -> None:
    model = tiny_model().train()
    model(token_ids(2, 9))
    parts = [f(model) for f in (sequence_balance_loss, switch_balance_loss)]
    z = router_z_loss(model)
    want = 0.5 * parts[0] + 0.25 * parts[1] + 2.0 * z
    found = balance_loss(model, alpha=0.5, switch=0.25, z=2.0)
    torch.testing.assert_close(found, want)
    assert balance_loss(model) == 0
    assert balance_loss(model, alpha=1e-4) == 1e-4 * parts[0]  # to the last bit
    mask = torch.rand(2, 9) < 0.5
    found = balance_loss(model, switch=1.0, mask=mask)
    assert found == switch_balance_loss(model, mask) != parts[1]


def test_a_recipe_weighs_each_loss_with_its_own_key() -> None:
    model = tiny_model().train()
    model(token_ids(2, 9))
    assert BalanceConfig().loss(model) == 1e-4 * sequence_balance_loss(model)
    switch = BalanceConfig(alpha=0.0, switch=0.01)
    assert switch.loss(model) == 0.01 * switch_balance_loss(model)
    z = BalanceConfig(alpha=0.0, z=0.001)
    assert z.loss(model) == 0.001 * router_z_loss(model)


def test_violation_and_entropy() -> None:
    load = torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0], [8, 8, 0, 0]])
    assert max_violation(load).tolist() == [0.0, 3.0, 1.0]
    assert load_entropy(load).tolist() == pytest.approx([1.0, 0.0, 0.5])
    idle = torch.zeros(1, 4, dtype=torch.int64)
    assert not math.isnan(max_violation(idle).item())
    assert not math.isnan(load_entropy(idle).item())
