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
from r1lite.recipe import Recipe
from r1lite.training.loop import Run, StageResult
from r1lite.training.metrics import MetricsLog

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
        if self.run.progress:
            self.console.print(text)

    def cached(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of `results/name.json`, made and written if missing."""
        path = self.dir / "results" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        value = make()
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(value, indent=1))
        return value

    def tokenizer(self) -> R1Tokenizer:
        """The run's tokenizer; the pipeline's first step wrote it."""
        return R1Tokenizer.load(self.dir / "tokenizer")

    def model(self, stage: str) -> R1Model:
        """The model as `stage` left it."""
        return hub.from_pretrained(self.dir / stage)

    def stage(
        self, name: str, train: Callable[[], tuple[R1Model, StageResult]]
    ) -> StageResult:
        """Run a stage unless it is done; keep its model and what it cost."""

        def make() -> dict[str, Any]:
            self.say(f"[bold]{name}[/bold]")
            model, result = train()
            shutil.rmtree(self.dir / name, ignore_errors=True)
            hub.save_pretrained(model, self.dir / name, self.tokenizer())
            return asdict(result)

        result = StageResult(**self.cached(f"stage_{name}", make))
        # Only now: a kill between the two must not lose the stage's last step.
        self.run.checkpoint_path(result.name).unlink(missing_ok=True)
        return result


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that no reader ever sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def open_run(recipe: Recipe, out: Path, console: Console, progress: bool) -> Context:
    """Create the run directory, or resume it if it holds the same recipe.

    Raises:
        R1Error: the directory holds something else; nothing is touched.
    """
    text = recipe.to_toml()
    if out.exists() and not out.is_dir():
        raise R1Error(f"--out: {out} is a file; give a directory")
    if out.is_dir() and any(out.iterdir()):
        _require_same(out, text)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / RECIPE_FILE, text)
    except OSError as e:
        raise R1Error(
            f"--out: cannot write {out} ({e.strerror}); give another one"
        ) from e
    run = Run(
        out,
        recipe.seed,
        MetricsLog(out),
        recipe.fingerprint(),
        recipe.checkpoint_seconds,
        progress=progress,
    )
    return Context(recipe, run, console)


def _require_same(out: Path, text: str) -> None:
    saved = out / RECIPE_FILE
    if not saved.is_file():
        raise R1Error(f"--out: {out} holds other files; give a new or empty directory")
    if saved.read_text() != text:
        raise R1Error(
            f"--out: {out} holds a run of another recipe or seed; give another "
            "--out, or the same recipe to resume it"
        )
