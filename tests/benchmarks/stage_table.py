"""The stages of R1 on nano, each with its rivals, over several seeds.

    for s in 0 1 2; do r1lite run nano --seed $s --out runs/nano-seed$s; done
    for s in 0 1 2; do
        python tests/benchmarks/stage_table.py train runs/nano-seed$s runs/r1-seed$s
    done
    python tests/benchmarks/stage_table.py table runs/r1-seed*

results/r1 was made when `nano` had 300 SFT steps: add `--set sft.steps=300` to get
its starts. A finished seed's folder in results/r1 serves `table` as well as its run.
`train` takes over what the nano run has trained and trains the rest of section
`[r1]` with the budgets below. `table` writes results/r1: the raw log and the
measurements of each seed, and table.md.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from r1lite import recipe as recipes
from r1lite.evaluation import LevelResult
from r1lite.pipeline import r1
from r1lite.pipeline.context import Context, open_run
from r1lite.pipeline.measure import Measure, Way

RESULTS = Path(__file__).parents[2] / "results" / "r1"
TAKEN = ("base", "sft", "grpo", "clean", "continued", "expert")
SFT = {"steps": 300, "tokens": 2048, "seq_len": 128}
SECTION: dict[str, Any] = {
    "enabled": True,
    "ppo": {"steps": 40, "questions": 64, "group_size": 8, "max_new_tokens": 64},
    "ask": 3000,
    "rejection": SFT,
    "second": {
        "steps": 15,
        "questions": 64,
        "group_size": 8,
        "max_new_tokens": 64,
        "temperature": 0.7,
        "kl_coef": 0.001,
    },
    "student_pretrain": {"steps": 150, "batch_size": 32, "seq_len": 128},
    "student_sft": SFT,
    "distill": SFT,
}
ROWS = {
    "base": ("base", False),
    "SFT: cold start (stage 1)": ("sft", False),
    "PPO": ("ppo", False),
    "GRPO (stage 2)": ("grpo", False),
    "rejection SFT from base (stage 3)": ("rejection", False),
    "second RL (stage 4)": ("second", False),
    "student: base": ("student_base", False),
    "student: by traces": ("student_traces", False),
    "student: by logits": ("student_logits", False),
    "student: cold start": ("student_sft", False),
    "student: RL on its own": ("student_grpo", False),
    "(1) SFT, made to think": ("sft", True),
    "(3) clean SFT": ("clean", False),
    "(4) continued SFT": ("continued", False),
    "(5) expert iteration": ("expert", False),
}
VOTES = {
    "SFT, T=1": Way("sft"),
    "SFT made to think, T=1": Way("sft", think=True),
    "GRPO, T=1": Way("grpo"),
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds


def train(source: Path, out: Path) -> None:
    """Everything of one seed: the stages that are missing, then the measurements."""
    recipe = recipes.read(source / "recipe.toml")
    context = open_run(
        recipes.with_section(recipe, "r1", SECTION), out, Console(), progress=True
    )
    take_over(source, out)
    r1.make_all(context)
    measure(context)


def take_over(source: Path, out: Path) -> None:
    """The nano run's models, tokenizer and costs."""
    (out / "results").mkdir(exist_ok=True)
    if not (out / "tokenizer").exists():
        shutil.copytree(source / "tokenizer", out / "tokenizer")
    for stage in TAKEN:
        if not (out / stage).exists():
            shutil.copytree(source / stage, out / stage)
        file = f"results/stage_{stage}.json"
        shutil.copy(source / file, out / file)
    temperatures = sorted((source / "results").glob("test_sft_T=*.json"))
    for file in temperatures:  # the temperature that was best on validation
        shutil.copy(file, out / "results" / file.name)


def measure(context: Context) -> None:
    """Accuracy and length of every row on the test split, votes on part of it."""
    found = Measure(context)
    rows = {
        name: [
            pooled(found.evaluate(Way(policy, think=think), "test")),
            cost(context, policy),
        ]
        for name, (policy, think) in ROWS.items()
    }
    for file in sorted((context.dir / "results").glob("test_sft_T=*.json")):
        results = [LevelResult(**r) for r in json.loads(file.read_text())]
        name = f"(2) SFT, best temperature {file.stem.partition('=')[2]}"
        rows[name] = [pooled(results), {}]
    votes = {name: pooled(found.pass_k(way)) for name, way in VOTES.items()}
    data = {"seed": context.recipe.seed, "rows": rows, "votes": votes}
    (context.dir / "r1.json").write_text(json.dumps(data, indent=1) + "\n")


def pooled(results: list[LevelResult]) -> dict[str, float]:
    """Means over all problems of all levels."""
    n = sum(r.n for r in results)
    names = ("accuracy", "format", "mean_length", "think_share", "pass_k", "cons_k")
    found: dict[str, float] = {"n": n}
    for name in names:
        values = [getattr(r, name) for r in results]
        if None not in values:
            found[name] = sum(v * r.n for v, r in zip(values, results, strict=True)) / n
    return found


def cost(context: Context, policy: str) -> dict[str, float]:
    """Tokens read and written, and minutes, of the stage alone."""
    path = context.dir / "results" / f"stage_{policy}.json"
    stage = json.loads(path.read_text())
    return {"tokens": stage["tokens"], "minutes": stage["seconds"] / 60}


def interval(values: list[float], scale: float = 100) -> str:
    """Mean and half a 95 % interval over seeds (Student's t)."""
    middle = fmean(values) * scale
    if len(values) < 2:
        return f"{middle:.1f}"
    half = T_95[len(values)] * stdev(values) / len(values) ** 0.5 * scale
    return f"{middle:.1f} ± {half:.1f}"


def table(folders: list[Path]) -> None:
    """results/r1 from finished runs."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    seeds = [json.loads((f / "r1.json").read_text()) for f in folders]
    for folder, seed in zip(folders, seeds, strict=True):
        target = RESULTS / f"seed{seed['seed']}"
        target.mkdir(exist_ok=True)
        if folder.resolve() == target.resolve():
            continue
        for name in ("r1.json", "metrics.jsonl", "recipe.toml"):
            shutil.copy(folder / name, target / name)
    made = lines(seeds)
    (RESULTS / "table.md").write_text("\n".join(made) + "\n")
    print("\n".join(made))


def lines(seeds: list[dict[str, Any]]) -> list[str]:
    """The two tables of table.md, from the seeds' r1.json."""
    made = [
        "| policy, greedy | right, % | of each seed | answer, tokens | minutes |",
        "|---|---|---|---|---|",
    ]
    for name in seeds[0]["rows"]:
        same = [n for n in [name] if all(n in s["rows"] for s in seeds)]
        found = [s["rows"][name] for s in seeds if name in s["rows"]]
        scores = [f[0]["accuracy"] for f in found]
        each = ", ".join(f"{100 * s:.1f}" for s in scores)
        length = fmean(f[0]["mean_length"] for f in found)
        minutes = [f[1]["minutes"] for f in found if f[1]]
        spent = f"{fmean(minutes):.1f}" if minutes else ""
        shown = interval(scores) if same else f"{100 * fmean(scores):.1f}"
        made.append(f"| {name} | {shown} | {each} | {length:.1f} | {spent} |")
    made += ["", "| 16 answers each | right, % | majority, % | any of 16, % |"]
    made.append("|---|---|---|---|")
    for name in seeds[0]["votes"]:
        votes = [s["votes"][name] for s in seeds]
        cells = [
            interval([v[k] for v in votes]) for k in ("accuracy", "cons_k", "pass_k")
        ]
        made.append(f"| {name} | {' | '.join(cells)} |")
    return made


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    if what == "train":
        train(*map(Path, paths))
    else:
        table(list(map(Path, paths)))
