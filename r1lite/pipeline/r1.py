"""What follows GRPO in R1, and what competes with it; section `[r1]` of a recipe.

R1's four stages (arXiv 2501.12948, section 2.3): cold start, RL for reasoning,
fine-tuning of the *base* on accepted answers and general data, RL once more. The
rivals start where they have to: PPO from the cold start, the students from their
own small base.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from r1lite.data import chat, sources
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.evaluation import LevelResult, answer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.pipeline.context import Context
from r1lite.pipeline.measure import Measure, Way
from r1lite.pipeline.stages import problem_source, supervised, text_for
from r1lite.tasks import stream
from r1lite.training.distill import distill, teacher_traces
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import StageResult, derive_seed
from r1lite.training.ppo import ppo
from r1lite.training.pretrain import pretrain
from r1lite.training.rejection import accepted, as_example
from r1lite.training.sft import ExampleAt, sft


def make_ppo(context: Context) -> StageResult:
    """PPO from the cold start, on GRPO's problems."""

    def train() -> tuple[R1Model, StageResult]:
        model = context.model("sft")
        how, at = context.recipe.r1.ppo, problem_source(context)
        return model, ppo(context.run, model, context.tokenizer(), how, at)

    return context.stage("ppo", train)


def sampling(context: Context, name: str) -> Sampling:
    """How the answers of a data set are drawn."""
    how = context.recipe.grpo
    stop = (context.tokenizer().eos_id,)
    seed = derive_seed(context.recipe.seed, name)
    return Sampling(how.max_new_tokens, how.temperature, stop_ids=stop, seed=seed)


def make_rejection(context: Context) -> StageResult:
    """Stage 3: the base again, on accepted answers of stage 2 and on dialogues."""

    def train() -> tuple[R1Model, StageResult]:
        c, tokenizer = context.recipe.r1, context.tokenizer()
        seed = derive_seed(context.recipe.seed, "rejection")
        asked = stream(context.recipe.tasks.shares, seed)
        items = answer(
            context.model("grpo"),
            tokenizer,
            [asked.problem_at(i) for i in range(c.ask)],
            sampling(context, "rejection"),
            c.samples,
        )
        good = [as_example(r) for r in accepted(items, c.samples, c.keep)]
        if not good:
            raise R1Error(
                f"r1.ask: none of {len(items)} answers of the GRPO model is right; "
                "train it longer or ask easier problems"
            )
        talk = dialogues(tokenizer, c.rejection.seq_len)
        context.cached("accepted", lambda: {"asked": len(items), "accepted": len(good)})
        model = context.model("base")
        source = mixed(good, talk, c.general, seed)
        return model, sft(context.run, "rejection", model, c.rejection, source)

    return context.stage("rejection", train)


def dialogues(tokenizer: R1Tokenizer, limit: int) -> list[chat.Example]:
    """Question and reply of the chatterbot corpus, those of at most `limit` tokens."""
    found = []
    for text in sources.load("chatterbot"):
        asked, _, reply = text.partition("\n")
        found.append(chat.example(tokenizer, asked, None, reply))
    return [e for e in found if len(e.ids) <= limit]


def mixed(
    good: list[chat.Example], talk: list[chat.Example], general: float, seed: int
) -> ExampleAt:
    """Example i: from `talk` with chance `general`, else from `good`."""

    def example_at(i: int) -> chat.Example:
        pick = derive_seed(seed, i)
        pool = talk if pick % 1000 < 1000 * general else good
        return pool[pick // 1000 % len(pool)]

    return example_at


def make_rl(context: Context, name: str, start: str, config: GRPOConfig) -> StageResult:
    """GRPO from the model of `start`, on problems that no other stage has drawn."""

    def train() -> tuple[R1Model, StageResult]:
        model = context.model(start)
        seed = derive_seed(context.recipe.seed, "rl", name)
        at = stream(context.recipe.tasks.shares, seed).problem_at
        run, tokenizer = context.run, context.tokenizer()
        return model, grpo(run, model, tokenizer, config, at, name=name)

    return context.stage(name, train)


def make_student_base(context: Context) -> StageResult:
    """A smaller model, pretrained on the same mixture."""

    def train() -> tuple[R1Model, StageResult]:
        recipe, tokenizer = context.recipe, context.tokenizer()
        config = recipe.r1.student_pretrain
        rows = text_for(context, config, "student pack").rows
        torch.manual_seed(derive_seed(recipe.seed, "student"))
        shape = recipe.model_config_for(tokenizer.vocab_size)
        model = R1Model(shape.with_(**recipe.r1.student))
        result = pretrain(context.run, model, config, rows, "student_base")
        return model, result

    return context.stage("student_base", train)


def make_students(context: Context) -> dict[str, StageResult]:
    """Three ways to make the student reason: traces, logits, RL of its own."""
    c, tokenizer = context.recipe.r1, context.tokenizer()
    made = {"student_base": make_student_base(context)}
    cache: list[chat.Example] = []

    def trace_at(i: int) -> chat.Example:
        if not cache:
            cache.extend(_traces(context, tokenizer))
        return cache[derive_seed(context.recipe.seed, i) % len(cache)]

    def by_traces() -> tuple[R1Model, StageResult]:
        model = context.model("student_base")
        return model, sft(context.run, "student_traces", model, c.student_sft, trace_at)

    def by_logits() -> tuple[R1Model, StageResult]:
        model, teacher = context.model("student_base"), context.model("grpo")
        return model, distill(
            context.run, "student_logits", model, teacher, c.distill, trace_at
        )

    made["student_traces"] = context.stage("student_traces", by_traces)
    made["student_logits"] = context.stage("student_logits", by_logits)
    demos = context.recipe.demonstrations
    made["student_sft"] = supervised(
        context, "student_sft", "student_base", c.student_sft, demos
    )
    made["student_grpo"] = make_rl(
        context, "student_grpo", "student_sft", context.recipe.grpo
    )
    return made


def _traces(context: Context, tokenizer: R1Tokenizer) -> list[chat.Example]:
    c = context.recipe.r1
    asked = stream(
        context.recipe.tasks.shares, derive_seed(context.recipe.seed, "traces")
    )
    return teacher_traces(
        context.model("grpo"),
        tokenizer,
        [asked.problem_at(i) for i in range(c.ask)],
        sampling(context, "traces"),
        c.samples,
        c.keep,
    )


STAGES: dict[str, Callable[[Context], object]] = {
    "rejection": make_rejection,
    "second": lambda c: make_rl(c, "second", "rejection", c.recipe.r1.second),
    "students": make_students,
    "ppo": make_ppo,
}


SHOWN = {
    "sft": "Cold start (stage 1)",
    "ppo": "PPO, from the cold start",
    "grpo": "GRPO (stage 2)",
    "rejection": "Rejection-sampling SFT, from the base (stage 3)",
    "second": "Second RL (stage 4)",
    "student_traces": "Student, by the teacher's traces",
    "student_logits": "Student, by the teacher's logits",
    "student_sft": "Student, cold start",
    "student_grpo": "Student, RL on its own",
}


OWN = [policy for policy in SHOWN if policy not in ("sft", "grpo")]


def make_all(context: Context) -> None:
    """Every stage of the section, in order, then their accuracy; each resumes."""
    for make in STAGES.values():
        make(context)
    evaluations(Measure(context))


def costs(context: Context) -> dict[str, StageResult]:
    """What each stage of the section cost; `make_all` has run them."""
    return {
        name: StageResult(**context.cached(f"stage_{name}", dict))
        for name in ("student_base", *OWN)
    }


def evaluations(measure: Measure) -> list[tuple[Way, str, list[LevelResult]]]:
    """The section's own policies on the test split, greedy."""
    return [(way, "test", measure.evaluate(way, "test")) for way in map(Way, OWN)]
