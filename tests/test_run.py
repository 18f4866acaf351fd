"""The whole pipeline as a user runs it: a process, a kill, a resume, bad input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from r1lite.errors import R1Error
from r1lite.pipeline.talk import show_evaluation
from r1lite.report.schema import Report
from r1lite.training import metrics

# What a clock or the kernel decides; everything else must repeat to the bit.
MEASURED = {"time", "tokens_per_s", "memory_mb"}
SMALL = {
    "checkpoint_seconds": "0.0",
    "pretrain.steps": "6",
    "sft.steps": "6",
    "sft.tokens": "512",
    "grpo.steps": "3",
    "controls.enabled": "false",
    "tokenizer.train_bytes": "100000",
}


def command(out: Path, **changes: str) -> list[str]:
    sets = [f"--set={k}={v}" for k, v in (SMALL | changes).items()]
    run = "from r1lite.cli import app; app()"
    return [sys.executable, "-c", run, "run", "smoke", f"--out={out}", "--quiet", *sets]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(out: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, **changes), env=environment(), capture_output=True, text=True
    )


def kill_at(out: Path, stage: str, step: int) -> None:
    """Start the run and kill it as soon as it has logged this step."""
    process = subprocess.Popen(
        command(out), env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = metrics.read(out / "metrics.jsonl")
        if any(r["stage"] == stage and r["step"] >= step for r in rows):
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def curve(out: Path) -> list[dict[str, Any]]:
    rows = metrics.read(out / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in MEASURED} for r in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = finish(out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_everything_behind(undisturbed: Path) -> None:
    for name in ("recipe.toml", "metrics.jsonl", "report.json", "report.html"):
        assert (undisturbed / name).stat().st_size > 0, name
    for stage, count in (("pretrain", 6), ("sft", 6), ("grpo", 3)):
        steps = [r["step"] for r in curve(undisturbed) if r["stage"] == stage]
        assert steps == list(range(count))
    report = Report.load(undisturbed)
    assert report.before() is not None
    assert report.after() is not None
    assert abs(sum(d.measured for d in report.mixture) - 1) < 1e-6
    assert any((undisturbed / "tensorboard").iterdir())


def test_killed_three_times_it_takes_the_same_path(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    for stage, step in (("pretrain", 2), ("sft", 3), ("grpo", 1)):
        kill_at(out, stage, step)
    done = finish(out)
    assert done.returncode == 0, done.stderr
    assert curve(out) == curve(undisturbed)
    ours, theirs = (
        load_file(d / "final" / "model.safetensors") for d in (out, undisturbed)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    one, two = (Report.load(d) for d in (out, undisturbed))
    assert one.evaluations == two.evaluations


def test_a_finished_run_is_shown_again_not_run_again(undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    done = finish(undisturbed)
    assert done.returncode == 0
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_another_recipe_never_clobbers_a_run(undisturbed: Path) -> None:
    before = (undisturbed / "recipe.toml").read_bytes()
    done = finish(undisturbed, **{"seed": "7"})
    assert done.returncode == 2
    assert "another recipe or seed" in done.stderr
    assert (undisturbed / "recipe.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grpo.stepz": "3"}, ["grpo.stepz", "steps"]),
        ({"grpo.steps": '"many"'}, ["grpo.steps"]),
        ({"data.mixture.general": "0.7"}, ["mixture", "sum"]),
        ({"data.sources.general": '["nowhere"]'}, ["nowhere"]),
        ({"model.n_group": "3"}, ["n_group", "divide"]),
        ({"tasks.shares": "{'chain/99' = 1.0}"}, ["chain/99"]),
        ({"evaluation.max_new_tokens": "5000"}, ["context of"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, change: dict[str, str], words: list[str]
) -> None:
    done = finish(tmp_path / "x", **change)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("r1lite: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_other_files_in_the_directory_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = finish(tmp_path)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_chat_answers_and_ends(undisturbed: Path) -> None:
    talk = "from r1lite.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", talk, "chat", str(undisturbed / "final")],
        env=environment(),
        input="In order, mod 10: 3+4*2\n" + "<think>" * 900 + "\n\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "r1>" in done.stdout
    assert "exceed the" in done.stdout  # the long one is refused, the chat goes on


def test_eval_measures_a_saved_model(undisturbed: Path) -> None:
    run = "from r1lite.cli import app; app()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            run,
            "eval",
            str(undisturbed / "final"),
            "--level=chain/3",
            "--problems=16",
        ],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "chain/3" in done.stdout
    missing = subprocess.run(
        [sys.executable, "-c", run, "eval", str(undisturbed / "nothing")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert "no such directory" in missing.stderr


def test_eval_counts_a_problem_once_and_wants_one(undisturbed: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    final, rest = undisturbed / "final", ("test", 8, 0.0, False, 8, 0)
    show_evaluation(console, final, ("chain/3", "chain/3"), *rest)
    assert console.file.getvalue().count("chain/3") == 1  # type: ignore[attr-defined]
    with pytest.raises(R1Error, match="--problems: 0 is too few"):
        show_evaluation(console, final, ("chain/3",), "test", 0, 0.0, False, 8, 0)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "out"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "out" / "recipe.toml").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command resumes" in said


def test_metrics_are_json_lines(undisturbed: Path) -> None:
    for line in (undisturbed / "metrics.jsonl").read_text().splitlines():
        assert {"stage", "step", "loss", "memory_mb"} <= json.loads(line).keys()
