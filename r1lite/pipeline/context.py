"""A run directory: opened, resumed or refused, never clobbered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from r1lite import hub
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.recipe import Recipe, read
from r1lite.training.compute import open_team
from r1lite.training.loop import Run, StageResult
from r1lite.training.metrics import MetricsLog
from r1lite.training.state import forget

RECIPE_FILE = "recipe.toml"


@dataclass
class Context:
    """What every part of the pipeline needs."""

    recipe: Recipe
    run: Run
    console: Console

    @property
    def dir(self) -> Path:
        """The run directory."""
        return self.run.dir

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.run.progress and self.run.team.first:
            self.console.print(text)

    def cached(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of `results/name.json`, made and written if missing.

        With several ranks all make it, since making may be training; rank 0
        decides if it is missing, and writes.
        """
        path = self.dir / "results" / f"{name}.json"
        found = self.run.team.agree(
            lambda: [json.loads(path.read_text())] if path.exists() else []
        )
        if found:
            return found[0]
        value = make()
        return self.run.team.agree(lambda: _write_json(path, value))

    def tokenizer(self) -> R1Tokenizer:
        """The run's tokenizer; the pipeline's first step wrote it."""
        return R1Tokenizer.load(self.dir / "tokenizer")

    def model(self, stage: str) -> R1Model:
        """The model as `stage` left it."""
        return hub.from_pretrained(self.dir / stage).to(self.run.team.device)

    def stage(
        self, name: str, train: Callable[[], tuple[R1Model, StageResult]]
    ) -> StageResult:
        """Run a stage unless it is done; keep its model and what it cost."""

        def make() -> dict[str, Any]:
            self.say(f"[bold]{name}[/bold]")
            model, result = train()
            whole = self.run.team.whole(model)
            self.run.team.agree(lambda: self._save(whole, name))
            return asdict(result)

        result = StageResult(**self.cached(f"stage_{name}", make))
        # Only now: a kill between the two must not lose the stage's last step.
        self.run.team.agree(lambda: forget(self.run.checkpoint_path(result.name)))
        return result

    def _save(self, model: R1Model, stage: str) -> None:
        shutil.rmtree(self.dir / stage, ignore_errors=True)
        hub.save_pretrained(model, self.dir / stage, self.tokenizer())


def _write_json(path: Path, value: Any) -> Any:
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(value, indent=1))
    return value


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that no reader ever sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def open_run(recipe: Recipe, out: Path, console: Console, progress: bool) -> Context:
    """Create the run directory, or resume it if it holds the same recipe.

    Under torchrun every rank calls it.

    Raises:
        R1Error: the directory holds something else; nothing is touched.
    """
    team = open_team(recipe.parallel, recipe.compute)
    team.agree(lambda: _claim(recipe, out))
    run = Run(
        out,
        recipe.seed,
        MetricsLog(out),
        recipe.fingerprint(),
        recipe.checkpoint_seconds,
        progress=progress,
        team=team,
        compute=recipe.compute,
        parallel=recipe.parallel,
        guard=recipe.guard,
    )
    return Context(recipe, run, console)


def _claim(recipe: Recipe, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise R1Error(f"--out: {out} is a file; give a directory")
    if out.is_dir() and any(out.iterdir()):
        _require_same(recipe, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / RECIPE_FILE, recipe.to_toml())
    except OSError as e:
        raise R1Error(
            f"--out: cannot write {out} ({e.strerror}); give another one"
        ) from e


def _require_same(recipe: Recipe, out: Path) -> None:
    saved = out / RECIPE_FILE
    if not saved.is_file():
        raise R1Error(f"--out: {out} holds other files; give a new or empty directory")
    if read(saved).fingerprint() != recipe.fingerprint():
        raise R1Error(
            f"--out: {out} holds a run of another recipe or seed; give another "
            "--out, or the same recipe to resume it"
        )
