"""Distillation: a small student learns from a teacher that reasons.

R1's students learn by *traces*: supervised fine-tuning on 800 thousand checked
answers of the teacher (arXiv 2501.12948, sections 2.4 and 4.1), which needs no
more of the teacher than its text. By *logits* (Hinton et al., arXiv 1503.02531)
every token teaches a whole distribution; teacher and student then have to share
a vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.data.chat import Example
from r1lite.data.packing import pack_examples
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.evaluation import answer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.tasks import Problem
from r1lite.training.loop import Run, StageResult, Update, run_stage
from r1lite.training.rejection import accepted, as_example
from r1lite.training.sft import ExampleAt, SFTConfig, _at_least, take_tokens


class DistillConfig(SFTConfig):
    """A step is SFT's; `temperature` softens both distributions of the logits."""

    temperature: float = 1.0


def teacher_traces(
    teacher: R1Model,
    tokenizer: R1Tokenizer,
    asked: list[Problem],
    how: Sampling,
    n: int = 4,
    keep: int = 2,
) -> list[Example]:
    """Ask the teacher `n` times each; at most `keep` verified answers a problem.

    Raises:
        R1Error: the teacher got nothing right.
    """
    right = accepted(answer(teacher, tokenizer, asked, how, n), n, keep)
    if not right:
        raise R1Error(
            "teacher: none of its answers is right; take another teacher or "
            "easier problems"
        )
    return [as_example(r) for r in right]


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of KL(teacher, student) of the next token.

    Both logits (tokens, vocab), of trained tokens only. The forward direction: the
    student must cover whatever the teacher may say. Times the temperature squared,
    so that the gradient keeps its size (section 2 of 1503.02531).
    """
    p = (teacher.float() / temperature).log_softmax(-1)
    q = (student.float() / temperature).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return kl.sum() / max(len(kl), 1) * temperature**2


def distill(
    run: Run,
    name: str,
    student: R1Model,
    teacher: R1Model,
    config: DistillConfig,
    example_at: ExampleAt,
) -> StageResult:
    """Train the student on the teacher's distributions over the examples' answers.

    Raises:
        R1Error: the two have different vocabularies.
    """
    sizes = student.config.vocab_size, teacher.config.vocab_size
    if sizes[0] != sizes[1]:
        raise R1Error(
            f"teacher: {sizes[1]} tokens against the student's {sizes[0]}; logits need "
            "one vocabulary, take traces"
        )
    teacher.to(run.team.device).eval()
    run.compute.prepare_(teacher)

    def step(i: int, update: Update) -> dict[str, float]:
        examples = take_tokens(example_at, i * config.tokens, config.tokens)
        packed = pack_examples(examples, config.seq_len, run.seed)
        packed = _at_least(run.team.ranks, packed)

        def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
            parts = (packed.ids, packed.mask, packed.document_ids)
            ids, mask, documents = (x[rows].to(run.team.device) for x in parts)
            where = (ids, mask, documents)
            with run.autocast():
                with torch.no_grad():
                    target = _logits(teacher, *where)
                loss = logit_loss(_logits(student, *where), target, config.temperature)
            balance = config.balance.loss(student)
            return {
                "loss": (loss, int(mask[:, 1:].sum())),
                "balance": (balance.to(run.team.device), len(ids)),
            }

        totals = {"loss": int(packed.mask[:, 1:].sum()), "balance": len(packed.ids)}
        means = run.accumulate(run.micro_batches(len(packed.ids)), terms, totals)
        tokens = sum(len(e.ids) for e in examples)
        return {"loss": means["loss"], "grad_norm": update(), "tokens": tokens}

    gamma = config.balance.gamma
    return run_stage(run, name, student, config.optim, config.steps, step, gamma)


def _logits(model: R1Model, ids: Tensor, mask: Tensor, documents: Tensor) -> Tensor:
    """(tokens, vocab), of the tokens that `mask` trains on."""
    hidden = model.hidden(ids[:, :-1], document_ids=documents[:, :-1])
    return model.lm_head(hidden[mask[:, 1:]])
