"""report.html: one file that holds everything, opens anywhere and prints.

It refers to nothing outside itself, and its content security policy forbids
that too. Every text of the run is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from r1lite.report import curves, data_plots, load_plots, plots, table
from r1lite.report.figure import series
from r1lite.report.files import Metrics, read_metrics, write_atomically
from r1lite.report.parts import Stage
from r1lite.report.reply import printable, segments
from r1lite.report.results import Evaluation, pool
from r1lite.report.schema import PAGE_NAME, Report

RECIPE_NAME = "recipe.toml"
HERE = Path(__file__).parent


def build(run_dir: Path | str) -> Path:
    """Write run_dir/report.html from report.json, metrics.jsonl and recipe.toml.

    Only report.json must be there. R1Error if it is missing or bad.
    """
    run = Path(run_dir)
    report, metrics = Report.load(run), read_metrics(run)
    recipe = run / RECIPE_NAME
    text = recipe.read_text("utf-8", "replace") if recipe.is_file() else ""
    path = run / PAGE_NAME
    write_atomically(path, render(report, metrics, text))
    return path


def render(report: Report, metrics: Metrics, recipe: str = "") -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "interval", "number", "amount", "seconds", "policy_name"):
        environment.filters[name] = getattr(table, name)
    environment.filters["printable"] = printable
    families, rows = report.families, table.headline_rows(report)
    controls = [row for row in rows if row.kind == "control"]
    best = max(controls, key=lambda row: row.result.accuracy, default=None)
    page = environment.get_template("report.html.j2").render(
        r=report,
        css=Markup((HERE / "report.css").read_text("utf-8")),
        recipe=recipe,
        before=report.before(),
        after=report.after(),
        rows=rows,
        r1_rows=table.r1_rows(report),
        family_rows={f: table.headline_rows(report, f) for f in families},
        verdicts={v.family: v for v in report.verdicts},
        sweep=sweep(report),
        seeds=table.seed_table(report.seeds),
        best=best,
        bit_policies=dict.fromkeys(p for d in report.held_out for p in d.bits_per_byte),
        stages=[(s, peak_memory(s, metrics)) for s in report.stages],
        figures=figures(report, metrics),
        stage_figures=stage_figures(report, metrics),
        times=table.times,
        how=table.how,
        segments=segments,
    )
    # A lone surrogate in a sample cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def figures(report: Report, metrics: Metrics) -> dict[str, Markup]:
    """Every figure by name ("levels NAME" for a family), empty without data."""
    rl = metrics.get(report.headline.after, [])
    drawn: dict[str, str | None] = {
        "headline": plots.headline(report),
        "rewards": curves.rewards(rl),
        "length": curves.response_length(rl),
        "health": curves.rl_health(rl),
        "load": load_plots.expert_load(metrics),
        "violation": load_plots.max_violation(metrics),
        "mixture": data_plots.mixture(report),
        "bits": data_plots.bits_per_byte(report),
    }
    for family in report.families:
        drawn[f"levels {family}"] = plots.accuracy_by_level(report, family)
    return {name: Markup(svg or "") for name, svg in drawn.items()}


def stage_figures(
    report: Report, metrics: Metrics
) -> dict[str, list[tuple[str, Markup]]]:
    """{"loss" | "optimisation": [(stage, figure)]} of the stages with such data.

    RL's loss says nothing by itself, so it is left out.
    """
    draw: dict[str, Callable[..., str | None]] = {
        "loss": curves.loss,
        "optimisation": curves.optimisation,
    }
    found: dict[str, list[tuple[str, Markup]]] = {kind: [] for kind in draw}
    for stage, records in metrics.items():
        for kind, figure in draw.items():
            if kind == "loss" and any("reward" in r for r in records):
                continue
            svg = figure(stage, records)
            if svg is not None:
                found[kind].append((stage, Markup(svg)))
    return found


def sweep(report: Report) -> list[Evaluation]:
    """Every way of answering on validation, pooled: what choices were made on."""
    rows = [e for e in report.evaluations if e.split == "validation"]
    ways = dict.fromkeys(e.way for e in rows)
    return [pool([e for e in rows if e.way == way]) for way in ways]


def peak_memory(stage: Stage, metrics: Metrics) -> float | None:
    """Most memory in MB that a record of the stage names."""
    _, found = series(metrics.get(stage.name, []), "memory_mb")
    return max(found.tolist(), default=None)
