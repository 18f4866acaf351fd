"""PPO as a stage: experience, any split of a batch, padding, resuming, errors."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.training.compute import ComputeConfig
from r1lite.training.experience import Experience, experience
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.optim import OptimConfig
from r1lite.training.ppo import PPOConfig, ppo, ppo_update
from r1lite.training.ppo_loss import read_tokens
from r1lite.training.reward_model import ScoreModel, score_rollouts
from r1lite.training.rollout import Rollout, rollouts

PROBLEM_AT = stream({"chain/3": 1.0}, 2).problem_at
SMALL = PPOConfig(
    steps=2,
    questions=4,
    group_size=2,
    epochs=2,
    minibatches=2,
    max_new_tokens=10,
    kl_coef=0.1,
)


@pytest.fixture
def both(model: R1Model) -> ScoreModel:
    found = ScoreModel.of(model)
    g = torch.Generator().manual_seed(1)
    found.score.weight.data = torch.randn(found.score.weight.shape, generator=g)
    return found


@pytest.fixture
def items(both: ScoreModel, tokenizer: R1Tokenizer) -> list[Rollout]:
    """Nine answers of 1 to 12 tokens."""
    how = Sampling(12, stop_ids=tuple(range(0, 300, 9)), seed=3)
    found = rollouts(
        both.eval(), tokenizer, [PROBLEM_AT(i) for i in range(3)], how, n=3
    )
    assert len({len(r.response) for r in found}) > 2
    return found


def see(
    run: Run, both: ScoreModel, items: list[Rollout], config: PPOConfig = SMALL
) -> Experience:
    reference = copy.deepcopy(both)
    reference.lm_head.weight.data *= 0.5
    scores = torch.linspace(-1, 1, len(items))
    return experience(run, both, reference, items, scores, config)[0]


def test_the_samplers_logprobs_are_the_trainers(
    run: Run, both: ScoreModel, items: list[Rollout]
) -> None:
    seen = see(run, both, items)
    read = read_tokens(both, seen.ids, seen.mask)
    assert int(seen.mask.sum()) == sum(len(r.response) for r in items)
    gap = (read.logprobs - seen.old_logprobs[seen.mask]).abs().max()
    assert float(gap.detach()) < 1e-4
    torch.testing.assert_close(read.values, seen.old_values[seen.mask])


def test_experience_is_0_outside_the_answers(
    run: Run, both: ScoreModel, items: list[Rollout]
) -> None:
    seen = see(run, both, items)
    for part in (seen.old_logprobs, seen.old_values, seen.advantages, seen.returns):
        assert part[~seen.mask].abs().max() == 0
    inside = seen.advantages[seen.mask]
    assert abs(float(inside.mean())) < 1e-5
    assert float(inside.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_returns_are_the_score_less_what_kl_is_still_to_pay(
    run: Run, both: ScoreModel, items: list[Rollout]
) -> None:
    config = SMALL.model_copy(update={"kl_coef": 0.0})
    seen = see(run, both, items, config)
    want = torch.linspace(-1, 1, len(items))[:, None].expand_as(seen.returns)
    torch.testing.assert_close(seen.returns[seen.mask], want[seen.mask])
    paid = see(run, both, items)
    last = [len(r.prompt) + len(r.response) - 2 for r in items]
    first = [len(r.prompt) - 1 for r in items]
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        kl = (want - paid.returns)[i, a : b + 1]
        assert float((kl[:-1] - kl[1:]).abs().sum()) > 0 or a == b


def gradients(
    run: Run, both: ScoreModel, seen: Experience
) -> tuple[dict[str, Tensor], dict[str, float]]:
    both.zero_grad()
    found = ppo_update(run, both.train(), seen, SMALL)
    return {
        k: p.grad.clone() for k, p in both.named_parameters() if p.grad is not None
    }, found


def moved(both: ScoreModel) -> ScoreModel:
    """A policy that has left the one that sampled: some tokens are clipped."""
    other = copy.deepcopy(both)
    g = torch.Generator().manual_seed(5)
    for p in other.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=g)
    return other


@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_any_split_gives_the_same_update(
    run: Run, both: ScoreModel, items: list[Rollout], micro_rows: int
) -> None:
    seen, policy = see(run, both, items), moved(both)
    whole, logged = gradients(run, policy, seen)
    small = replace(run, compute=ComputeConfig(micro_rows=micro_rows))
    split, logged_too = gradients(small, policy, seen)
    assert whole.keys() == split.keys()
    assert {"score.weight", "lm_head.weight"} <= whole.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(split[name], grad, atol=5e-6, rtol=0, msg=name)
    assert logged == pytest.approx(logged_too, abs=1e-5)
    assert logged["clip_frac"] > 0
    cut = see(small, both, items)
    for name, part in vars(seen).items():
        torch.testing.assert_close(vars(cut)[name], part, msg=name)


@pytest.mark.parametrize("more", [1, 7])
def test_padding_changes_no_gradient(
    run: Run, both: ScoreModel, items: list[Rollout], more: int
) -> None:
    seen, policy = see(run, both, items), moved(both)
    whole, _ = gradients(run, policy, seen)
    rows = len(items)
    wide = Experience(
        torch.cat([seen.ids, torch.full((rows, more), 77)], 1),
        torch.cat([seen.mask, torch.zeros(rows, more, dtype=torch.bool)], 1),
        *(
            torch.cat([x, torch.full((rows, more), 1e6)], 1)
            for x in (
                seen.old_logprobs,
                seen.old_values,
                seen.advantages,
                seen.returns,
            )
        ),
    )
    padded, _ = gradients(run, policy, wide)
    for name, grad in whole.items():
        assert float((grad - padded[name]).abs().max()) < 1e-6, name


def test_ppo_takes_its_steps_logs_and_changes_the_model_in_place(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    before = copy.deepcopy(model.state_dict())
    result = ppo(run, model, tokenizer, SMALL, PROBLEM_AT)
    rows = run.log.rewind("ppo", 2)
    assert result.steps == len(rows) == 2
    assert {"reward", "accuracy", "kl", "explained", "value_loss"} <= rows[0].keys()
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the reference is the start
    assert model.state_dict().keys() == before.keys()
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])


def test_a_resumed_stage_takes_the_same_path(
    model: R1Model, tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    start = copy.deepcopy(model)
    once = Run(tmp_path / "a", 0, log_in(tmp_path / "a"), progress=False)
    ppo(once, model, tokenizer, SMALL, PROBLEM_AT)
    cut = Run(
        tmp_path / "b", 0, log_in(tmp_path / "b"), checkpoint_seconds=0, progress=False
    )

    def stop(items: list[Rollout]) -> Tensor:
        if cut.checkpoint_path("ppo").with_suffix(".pt").exists():
            raise KeyboardInterrupt
        return torch.tensor([r.score.total for r in items])

    again = copy.deepcopy(start)
    with pytest.raises(KeyboardInterrupt):
        ppo(cut, again, tokenizer, SMALL, PROBLEM_AT, stop)
    again = copy.deepcopy(start)
    ppo(cut, again, tokenizer, SMALL, PROBLEM_AT)
    for name, want in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], want, msg=name)


def log_in(folder: Path) -> MetricsLog:
    folder.mkdir()
    return MetricsLog(folder, tensorboard=False)


def test_a_model_can_be_the_reward(
    both: ScoreModel, model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    seen: list[Tensor] = []

    def reward(items: list[Rollout]) -> Tensor:
        seen.append(score_rollouts(both, items))
        return seen[-1]

    ppo(run, model, tokenizer, SMALL, PROBLEM_AT, reward, name="hacked")
    rows = run.log.rewind("hacked", 2)
    found = [r["reward"] for r in rows]
    assert found == pytest.approx([float(s.mean()) for s in seen])


def test_it_raises_what_is_rewarded(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    """Even token ids: a reward that any policy can learn in a few steps."""
    config = SMALL.model_copy(
        update={"steps": 12, "questions": 8, "group_size": 4, "kl_coef": 0.0}
    )
    config = config.model_copy(
        update={"optim": OptimConfig(lr=5e-3, weight_decay=0.0, warmup_steps=1)}
    )

    def even(items: list[Rollout]) -> Tensor:
        return torch.tensor([fmean(t % 2 == 0 for t in r.response) for r in items])

    ppo(run, model, tokenizer, config, PROBLEM_AT, even)
    rewards = [r["reward"] for r in run.log.rewind("ppo", 12)]
    assert rewards[-1] > rewards[0] + 0.2


def test_a_model_with_mtp_and_tied_head_keeps_both(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    torch.manual_seed(0)
    whole = R1Model(
        model.config.with_(num_nextn_predict_layers=1, tie_word_embeddings=True)
    )
    before = copy.deepcopy(whole.state_dict())
    ppo(run, whole, tokenizer, SMALL, PROBLEM_AT)
    assert whole.lm_head.weight is whole.embed_tokens.weight
    assert not torch.equal(whole.lm_head.weight, before["lm_head.weight"])
    name = "mtp.eh_proj.weight"
    torch.testing.assert_close(whole.state_dict()[name], before[name])


def test_what_it_refuses(model: R1Model, tokenizer: R1Tokenizer, run: Run) -> None:
    many = SMALL.model_copy(update={"minibatches": 9})
    with pytest.raises(R1Error, match=r"ppo\.minibatches: 9"):
        ppo(run, model, tokenizer, many, PROBLEM_AT)
    crowd = replace(run, team=SimpleNamespace(ranks=5))  # type: ignore[arg-type]
    with pytest.raises(R1Error, match=r"on 5 rank\(s\); choose at most 1"):
        ppo(crowd, model, tokenizer, SMALL, PROBLEM_AT)
