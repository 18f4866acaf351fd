"""A GRPO step does not see how it is split; its options do what they say."""

from __future__ import annotations

import copy

import pytest
import torch

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.training.compute import ComputeConfig
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import Run
from r1lite.training.optim import OptimConfig
from r1lite.training.policy_loss import VARIANTS, variant
from r1lite.training.policy_update import PolicyUpdate, UpdateConfig, by_length
from r1lite.training.reference import Reference
from r1lite.training.rollout import Rollout, rollouts

PROBLEM_AT = stream({"chain/3": 1.0, "expression/4": 1.0}, 2).problem_at


def sampled(model: R1Model, tokenizer: R1Tokenizer) -> list[Rollout]:
    """Twelve answers of different lengths."""
    how = Sampling(20, 1.5, stop_ids=tuple(range(40)), seed=3)
    return rollouts(model.eval(), tokenizer, [PROBLEM_AT(i) for i in range(4)], how, 3)


def gradient(
    run: Run, model: R1Model, items: list[Rollout], config: UpdateConfig, micro: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """Of all parameters, with a reference that differs from the policy."""
    own = copy.deepcopy(model).train()
    run.compute = ComputeConfig(micro_rows=micro)
    step = PolicyUpdate(run, own, 2, config)
    step.reference = copy.deepcopy(model)
    torch.manual_seed(1)
    for p in step.reference.parameters():
        p.data += 0.05 * torch.randn_like(p)
    advantages = torch.randn(len(items))
    order = by_length(items, list(range(len(items))), 1)
    stats = step.gradients([items[k] for k in order], advantages[order])
    found = [p.grad for p in own.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in found]), stats


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_give_the_same_gradient(
    name: str, run: Run, model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    config = UpdateConfig(**variant(name), kl_coef=0.1, temperature=1.5)
    whole, stats = gradient(run, model, items, config, 0)
    assert whole.norm() > 1e-3
    for micro in (1, 5):
        found, again = gradient(run, model, items, config, micro)
        same = float((found - whole).abs().max()) < 1e-6
        assert same == (name != "bnpo")
        for key, value in stats.items():
            if key != "loss" or same:
                assert again[key] == pytest.approx(value, abs=1e-6)


def test_order_by_length_is_a_permutation_and_shares_out_the_long_ones(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    length = [len(r.prompt) + len(r.response) for r in items]
    order = by_length(items, [7, 1, 4, 2, 9, 11], 1)
    assert sorted(order) == [1, 2, 4, 7, 9, 11]
    assert [length[k] for k in order] == sorted(length[k] for k in order)
    two = by_length(items, list(range(12)), 2)
    sums = [sum(length[k] for k in part) for part in (two[:6], two[6:])]
    assert abs(sums[0] - sums[1]) <= max(length) - min(length)


def test_routing_replay_trains_on_the_samplers_experts(
    run: Run, model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    advantages = torch.randn(len(items))
    plain, forced = copy.deepcopy(model), copy.deepcopy(model)
    for one, replay in ((plain, False), (forced, True)):
        config = UpdateConfig(routing_replay=replay, temperature=1.5)
        PolicyUpdate(run, one.train(), 2, config).train(
            items, advantages, list(range(12)), lambda: 0.0
        )
    for a, b in zip(plain.parameters(), forced.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)


def test_nothing_to_learn_from_is_still_a_step(
    run: Run, model: R1Model, tokenizer: R1Tokenizer
) -> None:
    step = PolicyUpdate(run, model, 2, UpdateConfig())
    assert step.train([], torch.zeros(0), [], lambda: 0.5) == {
        "loss": 0.0,
        "grad_norm": 0.5,
    }


def test_reference_is_refreshed_and_found_again_on_resuming(
    run: Run, model: R1Model
) -> None:
    start = model.lm_head.weight.detach().clone()
    first = Reference(run, "grpo", model, every=3)
    moved = copy.deepcopy(model)
    for i in range(5):
        if i == 3:
            moved.lm_head.weight.data += 1
        held = first.at(i, moved).lm_head.weight
        assert torch.equal(held, start if i < 3 else start + 1)
    moved.lm_head.weight.data += 1  # training went on, then it was killed
    again = Reference(run, "grpo", model, every=3)
    assert torch.equal(again.at(5, moved).lm_head.weight, start + 1)
    assert torch.equal(again.at(6, moved).lm_head.weight, moved.lm_head.weight)


def test_a_lost_reference_stops_the_stage(run: Run, model: R1Model) -> None:
    with pytest.raises(R1Error, match="reference of step 4 is missing"):
        Reference(run, "grpo", model, every=4).at(5, model)


def test_a_reference_that_never_changes(run: Run, model: R1Model) -> None:
    held = Reference(run, "grpo", model)
    start = model.lm_head.weight.detach().clone()
    model.lm_head.weight.data += 1
    assert torch.equal(held.at(800, model).lm_head.weight, start)


def test_own_reward_overlength_and_counts_reach_the_log(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    config = GRPOConfig(
        steps=2,
        questions=2,
        group_size=4,
        max_new_tokens=6,
        overlong_buffer=3,
        kl_coef=0.01,
        reference_every=1,
        optim=OptimConfig(lr=1e-3),
    )
    grpo(
        run,
        model,
        tokenizer,
        config,
        PROBLEM_AT,
        lambda items: torch.tensor([float(len(r.response) % 2) for r in items]),
        "zero",
    )
    rows = run.log.rewind("zero", 2)
    assert len(rows) == 2
    assert all(r["frac_all_wrong"] == 1 and r["frac_all_right"] == 0 for r in rows)
    # Untrained answers run to the limit: odd or even pays 0 or 1, the length -1.
    cut = rows[0]["frac_cut_off"]
    assert cut > 0.5
    assert rows[0]["reward"] <= 1 - cut


def test_answers_that_were_cut_off_can_be_left_out(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    before = copy.deepcopy(model.state_dict())
    config = GRPOConfig(
        steps=1, questions=2, group_size=4, max_new_tokens=1, overlong_filter=True
    )
    grpo(run, model, tokenizer, config, PROBLEM_AT, lambda x: torch.rand(len(x)))
    assert run.log.rewind("grpo", 1)[0]["frac_cut_off"] == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_reference_computes_as_the_policy_does(
    run: Run, model: R1Model, tokenizer: R1Tokenizer
) -> None:
    """In bfloat16 too: of equal weights come equal log-probabilities."""
    run.compute = ComputeConfig(precision="bfloat16")
    held = Reference(run, "grpo", model).model
    run.compute.prepare_(model)
    torch.manual_seed(0)
    ids = torch.randint(tokenizer.vocab_size, (8, 60))
    with torch.no_grad(), run.autocast():
        found = [m.eval()(ids).logits for m in (model, held)]
    assert torch.equal(*found)


class _Ranks:
    """A team of many, of which the test plays none."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks


@pytest.mark.parametrize(
    ("ranks", "keep", "minibatches", "sizes"),
    [
        (1, 10, 4, [3, 3, 2, 2]),
        (1, 2, 4, [1, 1]),
        (8, 8, 2, [8]),  # one informative group of eight
        (4, 11, 3, [6, 5]),
        (8, 3, 2, [8]),  # filled up
    ],
)
def test_every_rank_has_an_answer_in_every_minibatch(
    run: Run,
    model: R1Model,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    keep: int,
    minibatches: int,
    sizes: list[int],
) -> None:
    item = Rollout.__new__(Rollout)
    vars(item).update(prompt=[1, 2], response=[3])
    step = PolicyUpdate(run, model, 2, GRPOConfig(minibatches=minibatches))
    monkeypatch.setattr(run, "team", _Ranks(ranks))
    monkeypatch.setattr(step, "_experts", lambda items: [])
    seen: list[torch.Tensor] = []

    def gradients(rows: list[Rollout], advantages: torch.Tensor, _: object) -> dict:
        seen.append(advantages)
        return {}

    monkeypatch.setattr(step, "gradients", gradients)
    step.train([item] * 12, torch.ones(12), list(range(keep)), lambda: 0.0)
    assert [len(a) for a in seen] == sizes
    # Only what is kept pushes; what fills up does not.
    assert sum(float(a.sum()) for a in seen) == keep
