"""The rivals that need training: what of RL's gain does supervised learning leave?

Clean SFT starts from the base with the SFT stage's budget of tokens. Continued
SFT and expert iteration start, like RL, from the SFT model and get RL's budget.
"""

from __future__ import annotations

from r1lite.model import R1Model
from r1lite.pipeline.context import Context
from r1lite.pipeline.stages import problem_source, supervised
from r1lite.training.loop import StageResult
from r1lite.training.rejection import expert_iteration


def make_clean(context: Context) -> StageResult:
    """Control 3: the same SFT, every example with right reasoning."""
    recipe = context.recipe
    clean = recipe.demonstrations.model_copy(
        update={"answer_only": 0.0, "wrong_steps": 0.0}
    )
    return supervised(context, "clean", "base", recipe.sft, clean)


def make_continued(context: Context, rl: StageResult) -> StageResult:
    """Control 4: more of the SFT mixture, as many tokens as RL read and wrote."""
    recipe = context.recipe
    config = recipe.sft.model_copy(
        update={"steps": max(1, round(rl.tokens / recipe.sft.tokens))}
    )
    return supervised(context, "continued", "sft", config, recipe.demonstrations)


def make_expert(context: Context) -> StageResult:
    """Control 5: sample as RL does, keep what is right, imitate it."""

    def train() -> tuple[R1Model, StageResult]:
        model = context.model("sft")
        result = expert_iteration(
            context.run,
            model,
            context.tokenizer(),
            context.recipe.controls.expert,
            problem_source(context),
        )
        return model, result

    return context.stage("expert", train)


def make_all(context: Context, rl: StageResult) -> dict[str, StageResult]:
    """Those that the recipe trains, by name."""
    wanted, made = context.recipe.controls.trained, {}
    if "clean" in wanted:
        made["clean"] = make_clean(context)
    if "continued" in wanted:
        made["continued"] = make_continued(context, rl)
    if "expert" in wanted:
        made["expert"] = make_expert(context)
    return made
