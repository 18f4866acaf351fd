"""The main line: tokenizer, pretraining, cold-start SFT, GRPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from r1lite.data import chat, endless, fim, mixture
from r1lite.data.packing import PackedRows, RowSource
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.pipeline.context import Context
from r1lite.tasks import Problem, stream
from r1lite.tasks.demonstrations import DemoConfig, Demonstrations
from r1lite.tasks.documents import documents
from r1lite.training.grpo import grpo
from r1lite.training.loop import StageResult, derive_seed
from r1lite.training.pretrain import PretrainConfig, bits_per_byte, pretrain
from r1lite.training.sft import SFTConfig, sft

GENERATED = 20_000_000  # bytes


def mathematics(context: Context, tokens: int) -> dict[str, list[str]]:
    """The mathematics domain: generated, from training problems only.

    A byte-level token holds at least one byte, so `tokens` bytes times the few
    bytes of a common token are surely enough; what is too much is not read.
    """
    recipe = context.recipe
    share = recipe.data.mixture.get("mathematics", 0.0)
    seed = derive_seed(recipe.seed, "mathematics")
    size = max(100_000, round(3 * share * tokens))
    if recipe.data.streams:  # an endless mixture repeats what it has at hand
        size = min(size, GENERATED)
    return {
        "mathematics": documents(
            seed,
            shares=recipe.tasks.shares,
            with_steps=recipe.mathematics.with_steps,
            size=size,
        )
    }


def make_tokenizer(context: Context) -> None:
    """Train the tokenizer on the mixture, once."""
    recipe = context.recipe
    target = context.dir / "tokenizer"
    if (target / "tokenizer.json").exists():
        return
    context.say("[bold]tokenizer[/bold]")
    source = endless if recipe.data.streams else mixture
    texts = source.tokenizer_texts(
        recipe.data,
        mathematics(context, recipe.tokenizer.train_bytes),
        recipe.seed,
        recipe.tokenizer.train_bytes,
    )
    marks = len(fim.FIM) if recipe.data.fim else 0
    tokenizer = R1Tokenizer.train(texts, recipe.tokenizer.vocab_size - marks)
    if marks:
        fim.add_marks(tokenizer)
    tokenizer.save(target)


@dataclass(frozen=True)
class Text:
    """What a pretraining stage reads, and what is held out of it by domain."""

    rows: RowSource
    heldout: dict[str, mixture.HeldOut]
    summary: Callable[[], dict[str, Any]]


def text_for(context: Context, config: PretrainConfig, name: str) -> Text:
    """The recipe's mixture for a pretraining stage, drawn whole or streamed.

    `name` gives the stage an order of its own.
    """
    recipe, tokenizer = context.recipe, context.tokenizer()
    made = mathematics(context, config.tokens)
    seed = derive_seed(recipe.seed, name)
    if recipe.data.streams:
        index = context.dir / "streams" / f"{name}.jsonl"
        found = endless.build(
            recipe.data,
            tokenizer,
            config.seq_len,
            seed,
            made,
            index=index,
            writes=context.run.team.first,
        )
        return Text(found.rows, found.heldout, lambda: found.summary)
    enough = config.tokens + config.batch_size * (config.seq_len + 1)
    data = mixture.build(recipe.data, tokenizer, enough, recipe.seed, made)
    rows = PackedRows(data.documents, tokenizer, config.seq_len, seed)
    return Text(rows, data.heldout, lambda: data.summary)


def make_base(context: Context) -> StageResult:
    """Pretrain from random weights and measure held-out bits per byte."""

    def train() -> tuple[R1Model, StageResult]:
        recipe, tokenizer = context.recipe, context.tokenizer()
        config = recipe.pretrain
        text = text_for(context, config, "pack")
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        model = R1Model(recipe.model_config_for(tokenizer.vocab_size))
        model.to(context.run.team.device)
        context.cached("bytes_untrained", lambda: held_out(context, model, text))
        result = pretrain(context.run, model, config, text.rows)
        context.cached("mixture", text.summary)  # a stream is counted as it is read
        whole = context.run.team.whole(model)
        context.cached("bytes_base", lambda: held_out(context, whole, text))
        return model, result

    return context.stage("base", train)


def held_out(context: Context, model: R1Model, text: Text) -> dict[str, float]:
    """Bits per byte of each domain's held-out documents."""
    seq_len = context.recipe.pretrain.seq_len
    model.eval()
    return {
        domain: bits_per_byte(model, part.ids, part.bytes, seq_len)
        for domain, part in text.heldout.items()
    }


def example_source(
    context: Context, tokenizer: R1Tokenizer, config: DemoConfig, name: str
) -> Callable[[int], chat.Example]:
    """The i-th demonstration of a mixture, as token ids."""
    shown_at = Demonstrations(
        config, context.recipe.tasks.shares, derive_seed(context.recipe.seed, name)
    ).at

    def example_at(i: int) -> chat.Example:
        shown = shown_at(i)
        return chat.example(tokenizer, shown.question, shown.reasoning, shown.answer)

    return example_at


def supervised(
    context: Context, name: str, start: str, config: SFTConfig, demos: DemoConfig
) -> StageResult:
    """One SFT stage from the model of `start` on a demonstration mixture."""

    def train() -> tuple[R1Model, StageResult]:
        model = context.model(start)
        source = example_source(context, context.tokenizer(), demos, name)
        return model, sft(context.run, name, model, config, source)

    return context.stage(name, train)


def make_sft(context: Context) -> StageResult:
    """The cold start: mostly answers at once, some reasoning, some of it wrong."""
    recipe = context.recipe
    return supervised(context, "sft", "base", recipe.sft, recipe.demonstrations)


def problem_source(context: Context) -> Callable[[int], Problem]:
    """The i-th training problem of RL, the same for GRPO and its rivals."""
    seed = derive_seed(context.recipe.seed, "rl")
    return stream(context.recipe.tasks.shares, seed).problem_at


def make_grpo(context: Context) -> StageResult:
    """Reinforcement learning from verifiable rewards."""

    def train() -> tuple[R1Model, StageResult]:
        model = context.model("sft")
        result = grpo(
            context.run,
            model,
            context.tokenizer(),
            context.recipe.grpo,
            problem_source(context),
        )
        return model, result

    return context.stage("grpo", train)
