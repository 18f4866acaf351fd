"""Rejection sampling: train on one's own answers that a verifier accepts.

R1 does it once between its two RL stages (arXiv 2501.12948, section 2.3.3).
Repeated, it is expert iteration, the simplest rival of a policy gradient and
one of the controls beside every RL result of the book.
"""

from __future__ import annotations

from r1lite.data.chat import Example
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.training.grpo import ProblemAt
from r1lite.training.loop import Run, StageResult, Update, derive_seed, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.rollout import Rollout, team_rollouts
from r1lite.training.sft import masked_step


class ExpertConfig(Section):
    """Section of expert iteration. A step samples as GRPO's does.

    Of every question's right answers, `keep` are trained on: easy questions
    must not outweigh hard ones.
    """

    steps: int = 80
    questions: int = 64
    group_size: int = 8
    keep: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 64
    seq_len: int = 256
    optim: OptimConfig = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0)


def accepted(items: list[Rollout], group: int, keep: int) -> list[Rollout]:
    """At most `keep` right, well-formed answers of each group of `group`."""
    chosen: list[Rollout] = []
    for at in range(0, len(items), group):
        right = [
            r
            for r in items[at : at + group]
            if r.score.accuracy == 1.0 and r.parsed.well_formed
        ]
        chosen += right[:keep]
    return chosen


def as_example(item: Rollout) -> Example:
    """The answer as a conversation to train on, its prompt masked out."""
    return Example(
        item.prompt + item.response,
        [False] * len(item.prompt) + [True] * len(item.response),
    )


def expert_iteration(
    run: Run,
    model: R1Model,
    tokenizer: R1Tokenizer,
    config: ExpertConfig,
    problem_at: ProblemAt,
    name: str = "expert",
) -> StageResult:
    """Sample, keep what is right, take one supervised step on it; repeat."""

    def step(i: int, update: Update) -> dict[str, float]:
        first = i * config.questions
        asked = [problem_at(first + j) for j in range(config.questions)]
        how = Sampling(
            config.max_new_tokens,
            config.temperature,
            stop_ids=(tokenizer.eos_id,),
            seed=derive_seed(run.seed, name, i),
        )
        items = team_rollouts(run, model, tokenizer, asked, how, config.group_size)
        right = accepted(items, config.group_size, config.keep)
        values = {
            "accuracy": sum(r.score.accuracy for r in items) / len(items),
            "length": sum(len(r.response) for r in items) / len(items),
            "kept": len(right) / len(items),
            "tokens": sum(len(r.prompt) + len(r.response) for r in items),
            "loss": 0.0,
        }
        if right:
            examples = [as_example(r) for r in right]
            values["loss"] = masked_step(run, model, examples, config.seq_len)["loss"]
        return {**values, "grad_norm": update()}

    return run_stage(run, name, model, config.optim, config.steps, step)
