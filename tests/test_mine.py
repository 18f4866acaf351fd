"""`r1lite run --mine`: the reader's own code trains the model, a wrong part never."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_exercises import FOLDER, GROUPS, MUTANTS

from r1lite.config import R1Config
from r1lite.data import chat
from r1lite.data.packing import PackedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import generate
from r1lite.model import R1Model
from r1lite.report.schema import Report
from r1lite.tasks import stream
from r1lite.training import metrics
from r1lite.training.grpo import GRPOConfig, grpo
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.pretrain import PretrainConfig, pretrain
from r1lite.training.rejection import ExpertConfig, expert_iteration
from r1lite.training.rollout import Rollout
from r1lite.training.sft import SFTConfig, sft
from r1lite.workbook import swap

SMALL = {
    "pretrain.steps": "3",
    "sft.steps": "3",
    "sft.tokens": "512",
    "grpo.steps": "1",
    "controls.enabled": "false",
    "tokenizer.train_bytes": "100000",
    "model.n_group": "2",  # so that the reader's choice of groups is used
    "model.topk_group": "1",
}
SWAPS = [e for g in GROUPS for e in g.exercises if e.swaps]
pytestmark = pytest.mark.slow


def run(out: Path, exercises: Path, *words: str) -> subprocess.CompletedProcess[str]:
    sets = [f"--set={k}={v}" for k, v in SMALL.items()]
    command = [sys.executable, "-m", "r1lite", "run", "smoke", f"--out={out}"]
    return subprocess.run(
        [*command, "--quiet", *sets, *words],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "R1LITE_EXERCISES": str(exercises),
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with every exercise solved."""
    folder = tmp_path_factory.mktemp("reader") / "exercises"
    shutil.copytree(FOLDER, folder)
    for group in GROUPS:
        (folder / f"{group.name}.py").write_text(group.file("solution"))
    return folder


def losses(out: Path) -> list[float]:
    return [r["loss"] for r in metrics.read(out / "metrics.jsonl")]


def test_all_own_parts_train_like_the_package(solved: Path, tmp_path: Path) -> None:
    assert len(SWAPS) >= 6
    own, package = tmp_path / "own", tmp_path / "package"
    done = run(own, solved, "--mine")
    assert done.returncode == 0, done.stderr
    assert Report.load(own).mine == {e.number: e.swaps for e in SWAPS}
    for exercise in SWAPS:
        assert f"yours: {exercise.number} {exercise.swaps}" in done.stdout
    assert "own parts" in done.stdout
    assert "reader's own parts" in (own / "report.html").read_text()
    assert run(package, solved).returncode == 0
    assert Report.load(package).mine == {}
    ours, theirs = losses(own), losses(package)
    assert len(ours) == 7
    assert all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
        for a, b in zip(ours, theirs, strict=True)
    )
    # Resumed without the parts it would be another run: refused.
    assert run(own, solved).returncode == 2


def fine_tune_and_reinforce(run: Run, model: R1Model, tokenizer: R1Tokenizer) -> None:
    """One step of every later stage."""
    shown = chat.example(tokenizer, "1+2", None, "3")
    sft(run, "sft", model, SFTConfig(steps=1, tokens=64, seq_len=64), lambda i: shown)
    at = stream({"chain/3": 1.0}, 0).problem_at
    size = {"steps": 1, "questions": 2, "group_size": 2, "max_new_tokens": 4}

    def differing(items: list[Rollout]) -> torch.Tensor:
        return torch.arange(float(len(items)))

    grpo(run, model, tokenizer, GRPOConfig(**size), at, differing)
    expert_iteration(run, model, tokenizer, ExpertConfig(**size, seq_len=64), at)


def test_every_own_part_is_called_by_training_or_sampling(
    solved: Path, tmp_path: Path
) -> None:
    parts, refused = swap.own_parts(solved)
    assert (len(parts), refused) == (len(SWAPS), [])
    calls: Counter[str] = Counter()

    def counting(part: swap.OwnPart) -> swap.OwnPart:
        @functools.wraps(part.function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[part.exercise.number] += 1
            return part.function(*args, **kwargs)

        return dataclasses.replace(part, function=counted)

    tokenizer = R1Tokenizer.train(["the model of the model"] * 20, 300)
    config = R1Config.preset("nano").with_(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        n_group=2,
        topk_group=1,
    )
    with swap.using([counting(p) for p in parts]):
        model = R1Model(config)
        stage = PretrainConfig(steps=2, batch_size=2, seq_len=12, document_mask=True)
        run = Run(tmp_path, 0, MetricsLog(tmp_path, tensorboard=False), progress=False)
        rows = PackedRows([[20] * 9, [30] * 5], tokenizer, 12, 0)
        pretrain(run, model, stage, rows)
        generate(model, [[1, 2, 3], [4]], 4, temperature=1.0, top_p=0.9)
        fine_tune_and_reinforce(run, model, tokenizer)
    assert {e.number for e in SWAPS} == set(calls)


def test_a_wrong_part_is_refused_and_the_packages_is_used(
    solved: Path, tmp_path: Path
) -> None:
    wrong = next(
        (m, e)
        for m in MUTANTS
        for e in m.group.exercises
        if e.swaps and m.exercise == e.number
    )
    mutant, exercise = wrong
    folder = tmp_path / "exercises"
    shutil.copytree(solved, folder)
    path = folder / f"{mutant.group.name}.py"
    region = exercise.solution.replace(mutant.old, mutant.new)
    path.write_text(path.read_text().replace(exercise.solution, region))
    done = run(tmp_path / "out", folder, "--mine")
    assert done.returncode == 0, done.stderr
    assert f"not used: {exercise.number}" in done.stdout
    assert mutant.message in done.stdout
    assert exercise.number not in Report.load(tmp_path / "out").mine


def test_with_untouched_stubs_there_is_nothing_to_train_with(tmp_path: Path) -> None:
    folder = tmp_path / "exercises"
    shutil.copytree(FOLDER, folder)
    for group in GROUPS:
        (folder / f"{group.name}.py").write_text(group.file("stub"))
    done = run(tmp_path / "out", folder, "--mine")
    assert done.returncode == 2
    assert "no exercise that can train the model passes yet" in done.stderr
    assert not (tmp_path / "out").exists()
