"""The main line: tokenizer, pretraining, cold-start SFT, GRPO."""

from __future__ import annotations

from collections.abc import Callable

import torch

from r1lite.data import chat, fim, mixture
from r1lite.data.packing import PackedRows
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


def mathematics(context: Context, tokens: int) -> dict[str, list[str]]:
    """The mathematics domain: generated, from training problems only.

    A byte-level token holds at least one byte, so `tokens` bytes times the few
    bytes of a common token are surely enough; what is too much is not read.
    """
    recipe = context.recipe
    share = recipe.data.mixture.get("mathematics", 0.0)
    seed = derive_seed(recipe.seed, "mathematics")
    size = max(100_000, round(3 * share * tokens))
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
    texts = mixture.tokenizer_texts(
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


def mixture_for(context: Context, config: PretrainConfig) -> mixture.Mixture:
    """Enough documents of the recipe's mixture for a pretraining stage."""
    recipe = context.recipe
    return mixture.build(
        recipe.data,
        context.tokenizer(),
        config.tokens + config.batch_size * (config.seq_len + 1),
        recipe.seed,
        mathematics(context, config.tokens),
    )


def make_base(context: Context) -> StageResult:
    """Pretrain from random weights and measure held-out bits per byte."""

    def train() -> tuple[R1Model, StageResult]:
        recipe, tokenizer = context.recipe, context.tokenizer()
        config = recipe.pretrain
        data = mixture_for(context, config)
        rows = PackedRows(
            data.documents, tokenizer, config.seq_len, derive_seed(recipe.seed, "pack")
        )
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        model = R1Model(recipe.model_config_for(tokenizer.vocab_size))
        context.cached("mixture", lambda: data.summary)
        model.to(context.run.team.device)
        context.cached("bytes_untrained", lambda: held_out(context, model, data))
        result = pretrain(context.run, model, config, rows)
        whole = context.run.team.whole(model)
        context.cached("bytes_base", lambda: held_out(context, whole, data))
        return model, result

    return context.stage("base", train)


def held_out(
    context: Context, model: R1Model, data: mixture.Mixture
) -> dict[str, float]:
    """Bits per byte of each domain's held-out documents."""
    seq_len = context.recipe.pretrain.seq_len
    model.eval()
    return {
        domain: bits_per_byte(model, part.ids, part.bytes, seq_len)
        for domain, part in data.heldout.items()
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
