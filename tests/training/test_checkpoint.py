"""Checkpoints: exact, atomic, safe, and refused with a remedy."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from r1lite.errors import R1Error
from r1lite.training import checkpoint


def trained(steps: int = 2) -> tuple[nn.Module, AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), 0.1)
    for _ in range(steps):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_state_returns_exactly(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = tmp_path / "c" / "sft.pt"
    checkpoint.save(path, "f", 2, model, [optimizer], {"note": 1})
    other, fresh = trained(0)
    assert checkpoint.load(path, "f", other, [fresh]) == (2, {"note": 1})
    assert torch.equal(other.weight, model.weight)  # type: ignore[arg-type]
    one = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], one)


def test_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    assert checkpoint.load(tmp_path / "no.pt", "f", model, [optimizer]) == (0, {})


def test_another_config_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path / "a.pt", "one", 2, model, [optimizer])
    with pytest.raises(R1Error, match="another configuration"):
        checkpoint.load(tmp_path / "a.pt", "two", model, [optimizer])


def test_damage_and_old_formats_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = tmp_path / "a.pt"
    checkpoint.save(path, "f", 2, model, [optimizer])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(R1Error, match="cannot be read"):
        checkpoint.load(path, "f", model, [optimizer])
    torch.save({"format": 0}, path)
    with pytest.raises(R1Error, match="another version"):
        checkpoint.load(path, "f", model, [optimizer])


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_checkpoint_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(_Bomb()))
    model, optimizer = trained(0)
    with pytest.raises(R1Error, match="cannot be read"):
        checkpoint.load(tmp_path / "a.pt", "f", model, [optimizer])
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    path = tmp_path / "a.pt"
    checkpoint.save(path, "f", 2, model, [optimizer])
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(R1Error, match=r"No space left.*free some disk"):
        checkpoint.save(path, "f", 3, model, [optimizer])
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_what_a_gpu_wrote_is_resumed_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
        checkpoint.save(tmp_path / "a.pt", "f", 2, model, [optimizer])
    other, fresh = trained(0)
    assert checkpoint.load(tmp_path / "a.pt", "f", other, [fresh]) == (2, {})
    assert torch.equal(other.weight, model.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyError("'0'"), IndexError("x"), TypeError("y")])
def test_damage_of_any_kind_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path / "a.pt", "f", 2, model, [optimizer])

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(R1Error, match="cannot be read"):
        checkpoint.load(tmp_path / "a.pt", "f", model, [optimizer])
