"""Everything a run measured, gathered into its report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import r1lite.report as parts
from r1lite.config import R1Config
from r1lite.evaluation import LevelResult, answer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.pipeline import r1
from r1lite.pipeline.context import Context
from r1lite.pipeline.measure import Measure, Way
from r1lite.report.machine import this_machine
from r1lite.report.schema import Report
from r1lite.tasks import Problem
from r1lite.tasks.demonstrations import Demonstrations, measured
from r1lite.training.loop import StageResult, derive_seed

SAMPLES = 6
Table = list[tuple[Way, str, list[LevelResult]]]  # (way, split, results by level)


def stage_part(result: StageResult) -> parts.Stage:
    """A stage's cost as a row of the report."""
    speed = result.tokens / result.seconds if result.seconds else 0.0
    return parts.Stage(
        name=result.name,
        seconds=result.seconds,
        tokens=result.tokens,
        tokens_per_s=speed,
        steps=result.steps,
    )


def active_parameters(model: R1Model, config: R1Config) -> int:
    """Parameters one token passes through: all but the experts not chosen.

    The MTP module is left out: it is dropped when the model answers.
    """
    total = sum(p.numel() for n, p in model.named_parameters() if "mtp" not in n)
    experts = sum(
        p.numel()
        for n, p in model.named_parameters()
        if ".experts." in n and "mtp" not in n
    )
    idle = 1 - config.num_experts_per_tok / config.n_routed_experts
    return round(total - experts * idle)


def evaluations(table: Table, passed: dict[str, list[LevelResult]]) -> list[Any]:
    """Rows of the report; `passed` maps a way's name to its sampled results."""
    rows = []
    for way, split, results in table:
        sampled = passed.get(way.name, []) if split == "test" else []
        k = {(r.family, r.level): (r.accuracy, r.pass_k) for r in sampled}
        for r in results:
            rows.append(
                parts.Evaluation(
                    policy=way.policy,
                    decode=way.decode,
                    forced_think=way.think,
                    split=split,  # type: ignore[arg-type]
                    family=r.family,
                    level=r.level,
                    n=r.n,
                    accuracy=r.accuracy,
                    pass1=k.get((r.family, r.level), (None, None))[0],
                    pass16=k.get((r.family, r.level), (None, None))[1],
                    format=r.format,
                    mean_length=r.mean_length,
                    think_share=r.think_share,
                )
            )
    return rows


def samples(context: Context, measure: Measure, policies: list[str]) -> list[Any]:
    """The same test problems answered greedily before and after RL."""

    def make() -> list[dict[str, Any]]:
        problems = measure.problems("test")
        chosen = problems[:: max(1, len(problems) // SAMPLES)][:SAMPLES]
        replies = {p: _replies(measure, p, chosen) for p in policies}
        return [
            parts.Sample(
                question=problem.question,
                reference=problem.answer,
                family=problem.family,
                level=problem.level,
                replies={p: replies[p][i] for p in policies},
            ).model_dump()
            for i, problem in enumerate(chosen)
        ]

    return [parts.Sample(**s) for s in context.cached("samples", make)]


def _replies(
    measure: Measure, policy: str, problems: list[Problem]
) -> list[parts.Reply]:
    tokenizer = measure.tokenizer
    how = Sampling(measure.config.max_new_tokens, 0.0, stop_ids=(tokenizer.eos_id,))
    items = answer(measure.model(policy), tokenizer, problems, how)
    return [
        parts.Reply(
            text=tokenizer.decode(r.response),
            correct=r.score.accuracy == 1.0,
            length=len(r.response),
        )
        for r in items
    ]


def demonstrations_part(context: Context) -> parts.Demonstrations:
    """The SFT mixture as it was really drawn, counted over its first examples."""
    recipe, count = context.recipe, 5000
    config, seed = recipe.demonstrations, derive_seed(recipe.seed, "sft")
    shown_at = Demonstrations(config, recipe.tasks.shares, seed).at
    found = measured(shown_at(i) for i in range(count))
    return parts.Demonstrations(
        examples=count,
        answer_only_asked=config.answer_only,
        answer_only=found["answer_only"],
        wrong_steps_asked=config.wrong_steps,
        wrong_steps=found["wrong_steps"],
        note="Counted over the first 5,000 examples of the stage.",
    )


def held_out_part(context: Context, mixture: dict[str, Any]) -> list[parts.HeldOut]:
    """Bits per byte of each domain, before and after pretraining."""
    untrained = context.cached("bytes_untrained", dict)
    base = context.cached("bytes_base", dict)
    return [
        parts.HeldOut(
            domain=d,
            bytes=mixture["heldout_bytes"][d],
            bits_per_byte={"untrained": untrained[d], "base": base[d]},
        )
        for d in base
    ]


def mixture_part(summary: dict[str, Any]) -> list[parts.Domain]:
    """Asked and measured shares of tokens, and where the text came from."""
    return [
        parts.Domain(
            name=name,
            asked=d["asked"],
            measured=d["share"],
            tokens=d["tokens"],
            bytes=d["bytes"],
            sources=[
                parts.Source(
                    name=s["name"],
                    package=s["package"],
                    licence=s["licence"],
                    tokens=s.get("tokens"),
                )
                for s in d["sources"]
            ],
        )
        for name, d in summary["domains"].items()
    ]


def rungs(stages: dict[str, StageResult]) -> list[parts.Rung]:
    """The rows of section `[r1]`, each with the cost of its stage alone."""
    return [
        parts.Rung(
            policy=policy,
            description=text,
            budget_tokens=stages[policy].tokens,
            budget_seconds=stages[policy].seconds,
        )
        for policy, text in r1.SHOWN.items()
    ]


def build(
    context: Context,
    measure: Measure,
    stages: dict[str, StageResult],
    table: Table,
    passed: dict[str, list[LevelResult]],
    controls: list[parts.Control],
    seconds: float,
) -> Report:
    """The report of a finished run."""
    recipe = context.recipe
    model = measure.model("grpo")
    config = model.config
    mixture = context.cached("mixture", dict)
    domains = mixture_part(mixture)
    whole = recipe.r1.enabled
    if whole:
        stages, table = stages | r1.costs(context), table + r1.evaluations(measure)
    report = Report(
        recipe=recipe.name,
        seed=recipe.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        model=parts.Model(
            name=recipe.name,
            params_total=sum(p.numel() for p in model.parameters()),
            params_active=active_parameters(model, config),
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            experts=config.n_routed_experts,
            experts_per_token=config.num_experts_per_tok,
            shared_experts=config.n_shared_experts,
            context=config.max_position_embeddings,
        ),
        tokenizer=parts.Tokenizer(
            vocab_size=measure.tokenizer.vocab_size,
            bytes_per_token=sum(d.bytes for d in domains)
            / max(1, sum(d.tokens for d in domains)),
            bytes_per_token_by_domain={
                d.name: d.bytes / max(1, d.tokens) for d in domains
            },
        ),
        mixture=domains,
        demonstrations=demonstrations_part(context),
        stages=[stage_part(r) for r in stages.values()],
        held_out=held_out_part(context, mixture),
        headline=parts.Headline(
            budget_tokens=stages["grpo"].tokens, budget_seconds=stages["grpo"].seconds
        ),
        evaluations=evaluations(table, passed),
        controls=controls,
        r1=rungs(stages) if whole else [],
        tried=[parts.Attempt.model_validate(a) for a in recipe.tried],
        samples=samples(context, measure, ["sft", "grpo"]),
        mine={n: text.split()[0] for n, text in (recipe.mine or {}).items()},
    )
    return report.model_copy(update={"goals": goals(context, report, stages, seconds)})


def goals(
    context: Context, report: Report, stages: dict[str, StageResult], seconds: float
) -> list[parts.Goal]:
    """Each promise of the recipe beside what was measured."""
    asked, before, after = context.recipe.goals, report.before(), report.after()
    if before is None or after is None:
        return []
    ratio = None
    if before.mean_length and after.mean_length:
        ratio = after.mean_length / before.mean_length
    found = [
        ("accuracy before RL", before.accuracy, None, asked.before_at_most, "%"),
        ("accuracy after RL", after.accuracy, asked.after_at_least, None, "%"),
        (
            "answer length, after / before",
            ratio,
            asked.length_ratio_at_least,
            None,
            "x",
        ),
        ("format after RL", after.format, asked.format_at_least, None, "%"),
        ("time of RL", stages["grpo"].seconds, None, asked.rl_seconds_at_most, "s"),
        ("time of the run", seconds, None, asked.total_seconds_at_most, "s"),
    ]
    return [
        parts.Goal(name=name, value=value, at_least=low, at_most=high, unit=unit)  # type: ignore[arg-type]
        for name, value, low, high, unit in found
        if low is not None or high is not None
    ]
