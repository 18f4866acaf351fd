"""Distillation: verified traces, and a loss on whole distributions."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import problems, stream
from r1lite.training.distill import (
    DistillConfig,
    distill,
    logit_loss,
    teacher_traces,
)
from r1lite.training.loop import Run
from r1lite.training.optim import OptimConfig
from r1lite.training.sft import SFTConfig, sft

PROBLEM_AT = stream({"chain/3": 1.0}, 2).problem_at


def test_loss_is_the_forward_kl_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    student = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert logit_loss(student, teacher).item() == pytest.approx(first / 2)
    assert logit_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_temperature_softens_both_and_keeps_the_gradients_size() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(5, 7, dtype=torch.float64)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    loss = logit_loss(student, teacher, temperature=4.0)
    p, q = (teacher.float() / 4).softmax(-1), (student.float() / 4).softmax(-1)
    (slope,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(slope.float(), 4 * (q - p) / 5)


def test_nothing_to_train_on_is_zero() -> None:
    none = torch.zeros(0, 7, requires_grad=True)
    assert logit_loss(none, none.detach()).item() == 0


def taught(model: R1Model, tokenizer: R1Tokenizer, run: Run) -> R1Model:
    """A teacher that answers at once, and right now and then."""
    from r1lite.data import chat

    def example_at(i: int) -> chat.Example:
        problem = PROBLEM_AT(i % 16)
        return chat.example(tokenizer, problem.question, None, problem.answer)

    config = SFTConfig(steps=40, tokens=512, seq_len=64, optim=OptimConfig(lr=1e-2))
    sft(run, "teacher", model, config, example_at)
    return model


def test_traces_are_verified_and_logits_bring_the_student_near(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    student = copy.deepcopy(model)
    teacher = taught(model, tokenizer, run)
    how = Sampling(12, 1.0, stop_ids=(tokenizer.eos_id,), seed=1)
    asked = [PROBLEM_AT(i) for i in range(16)]
    traces = teacher_traces(teacher, tokenizer, asked, how, 4, 1)
    assert 0 < len(traces) <= 16
    answers = {p.question: p.answer for p in asked}
    for trace in traces:
        text = tokenizer.decode(trace.ids)
        question = next(q for q in answers if q in text)
        assert f"<answer>{answers[question]}</answer>" in text
        assert not trace.mask[0]
        assert trace.mask[-1]
    config = DistillConfig(steps=12, tokens=256, seq_len=64, optim=OptimConfig(lr=1e-2))
    before = copy.deepcopy(teacher.state_dict())
    distill(run, "logits", student, teacher, config, lambda i: traces[i % len(traces)])
    losses = [r["loss"] for r in run.log.rewind("logits", 12)]
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_teacher_that_is_never_right_is_refused(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    how = Sampling(2, 0.0, stop_ids=(tokenizer.eos_id,))
    with pytest.raises(R1Error, match="teacher: none of its answers is right"):
        teacher_traces(model, tokenizer, problems("chain", 3, "train", 2, 0), how)


def test_logits_need_one_vocabulary(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    other = R1Model(model.config.with_(vocab_size=99))
    with pytest.raises(R1Error, match="logits need one vocabulary"):
        distill(run, "x", other, model, DistillConfig(steps=1), lambda i: None)  # type: ignore[arg-type, return-value]
