"""Checkpoints: saved on two ranks, read on one and four; damage is named."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.checkpoint_workers import SAVED, Trainer, resumes, saves
from parallel.launch import torchrun
from torch import nn

from r1lite.errors import R1Error
from r1lite.parallel.checkpoint import Checkpoints

# Damaged on purpose; and one process is a case of its own to torch.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_saved_on_two_ranks_resumed_on_one_and_four(tmp_path: Path) -> None:
    """With and without FSDP, optimizer included, written while training goes on."""
    script, root, layouts = (
        "checkpoint_workers.py",
        tmp_path / "runs",
        ["ep2", "ep2-fsdp"],
    )
    assert "save done" in torchrun(script, 2, "save", root, *layouts)
    for layout in layouts:
        resumes(root / layout)
    resume = ["resume", root, "ep4", "ep2-fsdp"]
    assert "resume done" in torchrun(script, 4, *resume)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    saves(root)
    return root


def test_one_process(saved: Path) -> None:
    resumes(saved)


def garbled(path: Path) -> None:
    path.write_bytes(b"\x80\x04garbage")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/r1lite-was-here",)


def hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile()))


@pytest.mark.parametrize(
    ("file", "harm", "words"),
    [
        (".metadata", Path.unlink, "metadata cannot be read"),
        (".metadata", garbled, "metadata cannot be read"),
        (".metadata", truncated, "metadata cannot be read"),
        (".metadata", hostile, "mkdir has no place in it"),
        ("__0_0.distcp", Path.unlink, "cannot be read"),
        ("__0_0.distcp", truncated, "cannot be read"),
        ("__0_0.distcp", garbled, "cannot be read"),
        ("r1lite.json", Path.unlink, "give a directory that r1lite saved"),
        ("r1lite.json", garbled, "give a directory that r1lite saved"),
    ],
)
def test_damage_is_one_line(
    file: str, harm: Any, words: str, saved: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(saved, root)
    harm(next(root.glob("step-*")) / file)
    with pytest.raises(R1Error, match=words) as found:
        Trainer(root).resume()
    assert "\n" not in str(found.value) and "step-00000003" in str(found.value)
    assert not Path("/tmp/r1lite-was-here").exists()


def test_another_configuration_and_another_model(saved: Path) -> None:
    with pytest.raises(R1Error, match="belongs to another configuration"):
        Checkpoints(saved, "other").load(nn.Linear(2, 2))
    checkpoints = Trainer(saved).checkpoints
    with pytest.raises(R1Error, match=r"model\.weight is missing there and"):
        checkpoints.load(nn.Linear(2, 2))


def small(root: Path) -> tuple[Checkpoints, nn.Linear]:
    return Checkpoints(root, "small"), nn.Linear(2, 2)


def test_a_crash_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, model = small(tmp_path)
    checkpoints.save(SAVED, model)
    old = model.weight.detach().clone()
    nn.init.zeros_(model.weight)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(R1Error, match=r"could not be written .*No space left"):
            checkpoints.save(4, model)
    assert checkpoints.load(model) == SAVED
    assert torch.equal(model.weight, old)
    nn.init.ones_(model.weight)
    checkpoints.save(4, model)  # what the crash left is in nobody's way
    assert checkpoints.load(model) == 4
    with pytest.raises(R1Error, match="exists already"):
        checkpoints.save(4, model)


def test_the_newest_two_stay(tmp_path: Path) -> None:
    checkpoints, model = small(tmp_path)
    assert checkpoints.load(model) == 0
    for step in (1, 20, 3):
        checkpoints.save(step, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000003",
        "step-00000020",
    ]


def test_weights_alone_do_not_pass_for_a_whole_state(tmp_path: Path) -> None:
    checkpoints, model = small(tmp_path)
    checkpoints.save(1, model)
    with pytest.raises(R1Error, match="holds no optimizer's state"):
        checkpoints.load(model, [torch.optim.AdamW(model.parameters())])
    assert checkpoints.load(model) == 1
