"""Rollouts, their tensors, and the two learners that read them."""

from __future__ import annotations

import torch

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.tasks.reward import RewardConfig
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import Run
from r1lite.training.optim import OptimConfig
from r1lite.training.rejection import (
    ExpertConfig,
    accepted,
    as_example,
    expert_iteration,
)
from r1lite.training.rollout import Rollout, collate, rollouts
from r1lite.training.sft import token_logprobs

PROBLEM_AT = stream({"chain/3": 1.0}, 2).problem_at


def sampled(model: R1Model, tokenizer: R1Tokenizer, n: int = 2) -> list[Rollout]:
    how = Sampling(12, stop_ids=(tokenizer.eos_id,), seed=3)
    return rollouts(model.eval(), tokenizer, [PROBLEM_AT(i) for i in range(3)], how, n)


def made_up(tokenizer: R1Tokenizer, problem_index: int, reply: str) -> Rollout:
    """A rollout whose answer somebody wrote: right, wrong or malformed."""
    from r1lite.tasks.reward import score

    problem = PROBLEM_AT(problem_index)
    ids = [tokenizer.answer_id, *tokenizer.encode(reply)]
    ids += [tokenizer.answer_end_id, tokenizer.eos_id]
    parsed = chat.parse(tokenizer, ids)
    prompt = chat.prompt(tokenizer, problem.question)
    how = RewardConfig()
    return Rollout(
        problem, prompt, ids, [0.0] * len(ids), parsed, score(problem, parsed, how)
    )


def test_trainer_and_sampler_agree_on_logprobs(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    items = sampled(model, tokenizer)
    batch = collate(items, tokenizer.pad_id)
    got, mask = token_logprobs(model, batch.ids, batch.prompt_lengths, batch.lengths)
    assert int(mask.sum()) == sum(len(r.response) for r in items)
    assert (got - batch.old_logprobs).abs().max() < 1e-4
    assert batch.old_logprobs[~mask].abs().max() == 0


def test_right_and_wrong_answers_are_scored(tokenizer: R1Tokenizer) -> None:
    right = made_up(tokenizer, 0, PROBLEM_AT(0).answer)
    wrong = made_up(tokenizer, 0, str((int(PROBLEM_AT(0).answer) + 1) % 10))
    assert (right.score.accuracy, right.score.format) == (1.0, 1.0)
    assert (wrong.score.accuracy, wrong.score.format) == (0.0, 1.0)
    assert right.score.total > wrong.score.total > 0


def test_accepted_keeps_right_answers_up_to_a_limit(tokenizer: R1Tokenizer) -> None:
    good = made_up(tokenizer, 0, PROBLEM_AT(0).answer)
    bad = made_up(tokenizer, 1, "no idea")
    items = [good, bad, good, good, bad, bad, bad, bad]
    assert accepted(items, 4, 2) == [good, good]
    example = as_example(good)
    assert example.ids == good.prompt + good.response
    assert sum(example.mask) == len(good.response)


def test_grpo_takes_its_steps_and_logs_them(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    before = model.lm_head.weight.detach().clone()
    config = GRPOConfig(
        steps=2,
        questions=4,
        group_size=4,
        minibatches=2,
        max_new_tokens=10,
        kl_coef=0.01,
        # Untrained, no answer is right or well formed; its length is a lottery
        # that a weight on format cannot see, so groups may all agree.
        optim=OptimConfig(lr=1e-3),
    )
    result = grpo(run, model, tokenizer, config, PROBLEM_AT)
    rows = run.log.rewind("grpo", 2)
    assert result.steps == len(rows) == 2
    assert all(0 <= r["frac_zero_std"] <= 1 and r["length"] <= 10 for r in rows)
    if any(r["grad_norm"] > 0 for r in rows):
        assert not torch.equal(model.lm_head.weight, before)


def test_expert_iteration_imitates_what_is_right(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    config = ExpertConfig(
        steps=2, questions=4, group_size=2, max_new_tokens=8, seq_len=96
    )
    result = expert_iteration(run, model, tokenizer, config, PROBLEM_AT)
    rows = run.log.rewind("expert", 2)
    assert result.steps == 2
    assert all(r["kept"] <= r["accuracy"] for r in rows)
