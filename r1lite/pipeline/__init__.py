"""A recipe run from its first byte to its report; every step resumes."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

import r1lite.report as parts
from r1lite import hub
from r1lite.evaluation import LevelResult
from r1lite.pipeline import controls, r1, stages, summary
from r1lite.pipeline.context import Context, open_run
from r1lite.pipeline.measure import Measure, Way
from r1lite.pipeline.room import require_room
from r1lite.recipe import Recipe
from r1lite.report.html import build as build_html
from r1lite.report.schema import FILE_NAME, Report
from r1lite.report.terminal import summary as terminal_summary
from r1lite.training.loop import StageResult


def run_recipe(
    recipe: Recipe, out: Path, console: Console, progress: bool = True
) -> Report:
    """Run, resume or just show a recipe in directory `out`.

    Raises:
        R1Error: `out` holds something else, or the recipe cannot be run.
    """
    require_room(recipe)
    context = open_run(recipe, out, console, progress)
    team = context.run.team
    if not team.agree((out / FILE_NAME).exists):
        _work(context)

    def show() -> Report:
        report = Report.load(out)
        build_html(out)
        console.print(terminal_summary(report, out))
        return report

    return team.agree(show)


def _work(context: Context) -> None:
    clock = _Clock(context)
    team = context.run.team
    team.agree(lambda: stages.make_tokenizer(context))
    results = {
        "base": stages.make_base(context),
        "sft": stages.make_sft(context),
        "grpo": stages.make_grpo(context),
    }
    team.agree(lambda: _save_final(context))
    with_controls = context.recipe.controls.enabled
    if with_controls:
        results |= controls.make_all(context, results["grpo"])
    if context.recipe.r1.enabled:
        r1.make_all(context)
    context.say("[bold]evaluation[/bold]")
    measure = Measure(context)
    rows = _controls(measure, results) if with_controls else []
    table, passed = _measure(measure, rows)
    team.agree(clock.stop)
    report = summary.build(
        context, measure, results, table, passed, rows, clock.seconds
    )
    team.agree(lambda: report.save(context.dir))
    team.agree(context.run.log.close)


class _Clock:
    """Wall time of the run so far, over all its resumptions."""

    def __init__(self, context: Context) -> None:
        self._path = context.dir / "results" / "seconds.txt"
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds written by `stop`."""
        return float(self._path.read_text()) if self._path.exists() else 0.0

    def stop(self) -> None:
        """Add the time since the start."""
        total = self.seconds + time.perf_counter() - self._began
        self._path.write_text(f"{total:.1f}")


def _save_final(context: Context) -> None:
    """`final/` is the model of the last stage: what `r1lite chat` opens."""
    target = context.dir / "final"
    if not target.exists():
        hub.save_pretrained(context.model("grpo"), target, context.tokenizer())


def _controls(measure: Measure, results: dict[str, StageResult]) -> list[parts.Control]:
    """The five controls; what can be chosen is chosen on validation."""

    def row(number: int, text: str, way: Way, cost: str | None) -> parts.Control:
        stage = results[cost] if cost else None
        return parts.Control(
            id=number,
            description=text,
            policy=way.policy,
            decode=way.decode,
            forced_think=way.think,
            budget_tokens=stage.tokens if stage else None,
            budget_seconds=stage.seconds if stage else None,
        )

    forced = measure.best_temperature("sft", think=True)
    sweep_base = measure.best_temperature("base")
    sweep_sft = measure.best_temperature("sft")
    rivals = {
        "clean": (3, "SFT on clean reasoning only"),
        "continued": (4, "continued SFT on the same mix"),
        "expert": (5, "expert iteration"),
    }
    return [
        row(1, "SFT model, answer forced to start with <think>", forced, None),
        row(2, "pretrained base, best temperature", sweep_base, None),
        row(2, "SFT model, best temperature", sweep_sft, None),
        *(row(*rivals[n], Way(n), n) for n in rivals if n in results),
    ]


def _measure(
    measure: Measure, rows: list[parts.Control]
) -> tuple[summary.Table, dict[str, list[LevelResult]]]:
    """Read the test split once: before, after, and every control."""
    before, after = Way("sft"), Way("grpo")
    ways = [before, after]
    for c in rows:
        temperature = 0.0 if c.decode == "greedy" else float(c.decode[2:])
        way = Way(c.policy, temperature, c.forced_think)
        if way not in ways:
            ways.append(way)
    table = [(w, "test", measure.evaluate(w, "test")) for w in ways]
    passed = {w.name: measure.pass_k(w) for w in (before, after)}
    if rows:
        for t in (0.0, *measure.config.sweep):
            for way in (Way("base", t), Way("sft", t), Way("sft", t, True)):
                table.append((way, "validation", measure.evaluate(way, "validation")))
    return table, passed
