"""`r1lite quantize`, and what chat, eval and the engine do with its directories."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.models import tiny_model
from support.serving import FIXTURE
from typer.testing import CliRunner

from r1lite.cli import cli
from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import Sampling, sample
from r1lite.hub import from_pretrained, save_pretrained
from r1lite.hub import save as save_module
from r1lite.pipeline.talk import say, show_evaluation
from r1lite.quantization.directory import quantise_directory
from r1lite.serving.engine import Engine
from r1lite.serving.types import EngineConfig, SamplingParams

QUESTION = "In order, mod 10: 7+1*3+1"  # the fixture answers 5


def command(*words: object) -> Any:
    """What the command line says."""
    return CliRunner().invoke(cli, ["quantize", *map(str, words)])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture in float32."""
    out = tmp_path_factory.mktemp("wide") / "nano"
    tokenizer = R1Tokenizer.load(FIXTURE)
    save_pretrained(from_pretrained(FIXTURE, torch.float32), out, tokenizer)
    return out


@pytest.fixture(scope="module", params=["int8", "int8-dynamic", "int8-g32"])
def folder(
    request: pytest.FixtureRequest,
    wide: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The fixture, quantised by the command."""
    out = tmp_path_factory.mktemp("quantised") / request.param
    done = command(wide, "--scheme", request.param, "--out", out)
    assert done.exit_code == 0, done.output
    assert "100.0% of the routed experts" in done.output
    return out


def test_the_directory_is_whole_and_smaller(folder: Path, wide: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    assert names == {p.name for p in wide.iterdir()} and "tokenizer.json" in names
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, wide)]
    assert sizes[0] < 0.5 * sizes[1]  # 8 bits instead of 32; embeddings as before


def test_chat_answers_as_before(folder: Path) -> None:
    console = Console(record=True, width=200)
    model, tokenizer = from_pretrained(folder), R1Tokenizer.load(folder)
    how = Sampling(64, 0.0, stop_ids=(tokenizer.eos_id,))
    say(console, model, tokenizer, QUESTION, how, think=False)
    assert console.export_text().strip().endswith("r1> 5")


def test_eval_reads_it(folder: Path) -> None:
    console = Console(record=True, width=200)
    show_evaluation(console, folder, ("chain/3",), "test", 16, 0.0, False, 64, 0)
    text = console.export_text()
    accuracy = float(text.split("chain/3")[1].split("│")[2].strip().rstrip("%"))
    assert accuracy >= 80


def test_the_engine_serves_it(folder: Path) -> None:
    model, tokenizer = from_pretrained(folder), R1Tokenizer.load(folder)
    prompts = [chat.prompt(tokenizer, QUESTION, think=t) for t in (False, True)]
    how = Sampling(24, 0.0, stop_ids=(tokenizer.eos_id,))
    want = [sample(model, [p], how).tokens[0] for p in prompts]
    engine = Engine(model, tokenizer, EngineConfig(num_pages=64))
    params = SamplingParams(max_tokens=24, temperature=0.0)
    ids = [engine.add_request(p, params) for p in prompts]
    got: dict[str, list[int]] = {i: [] for i in ids}
    while engine.has_work:
        for name, delta in engine.step():
            got[name] += delta.token_ids
    assert [tokenizer.decode(got[i], control=False) for i in ids] == [
        tokenizer.decode(w, control=False) for w in want
    ]


def test_calibration_on_a_file(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is 3 plus 4? It is 7, for 3 + 4 = 7.\n" * 100)
    for method in ("gptq", "awq"):
        done = command(
            *(FIXTURE, "--out", tmp_path / method, "--scheme", "int4-g32"),
            *("--method", method, "--text", text),
        )
        assert done.exit_code == 0, done.output
        config = json.loads((tmp_path / method / "config.json").read_text())
        assert config["quantization_config"]["rounding"] == method
        from_pretrained(tmp_path / method)


def refused(says: str, *words: object) -> None:
    done = command(*words)
    assert isinstance(done.exception, R1Error), done.output
    assert says in str(done.exception) and "\n" not in str(done.exception)


def test_what_the_command_refuses(tmp_path: Path) -> None:
    out, short = tmp_path / "out", tmp_path / "short.txt"
    short.write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with_text = ("--method", "gptq", "--text")
    refused("no such directory", tmp_path / "gone", "--out", out)
    refused("config.json: cannot be read", tmp_path / "empty", "--out", out)
    refused("exists already", FIXTURE, "--out", tmp_path / "taken")
    refused("exists already", FIXTURE, "--out", FIXTURE)
    refused("'int3' is unknown", FIXTURE, "--out", out, "--scheme", "int3")
    refused("'best' is unknown", FIXTURE, "--out", out, "--method", "best")
    refused("give a file of text", FIXTURE, "--out", out, "--method", "gptq")
    refused("cannot be read as text", FIXTURE, "--out", out, *with_text, out)
    refused("give more text", FIXTURE, "--out", out, *with_text, short)
    refused("too small", FIXTURE, "--out", out, "--scheme", "int4-g8")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"empty", "taken", "short.txt"}
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_bad_weights_write_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    model.layers[1].mlp.experts.down_proj.data[2, 3, 4] = float("inf")
    save_pretrained(model, tmp_path / "bad")
    with pytest.raises(R1Error, match=r"experts\.down_proj: holds NaN or"):
        quantise_directory(tmp_path / "bad", tmp_path / "out", "int8")
    odd = tiny_model(kv_lora_rank=13, intermediate_size=41)
    save_pretrained(odd, tmp_path / "odd")
    with pytest.raises(R1Error, match="odd number, cannot be packed"):
        quantise_directory(tmp_path / "odd", tmp_path / "out", "int4")
    assert {p.name for p in tmp_path.iterdir()} == {"bad", "odd"}


def test_a_quantised_directory_is_not_quantised_again(folder: Path) -> None:
    out = folder.parent / "again"
    refused("is quantised already", folder, "--out", out)
    assert not out.exists()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "save_file", full)
    with pytest.raises(R1Error, match="No space left"):
        quantise_directory(FIXTURE, tmp_path / "out", "int8")
    assert not list(tmp_path.iterdir())


def test_the_dtype_of_products_can_be_chosen(folder: Path) -> None:
    ids = torch.tensor([[9, 10, 11]])
    with torch.no_grad():
        low, high = (
            from_pretrained(folder, d)(ids).logits
            for d in (torch.bfloat16, torch.float32)
        )
    assert low.dtype == torch.bfloat16 and high.dtype == torch.float32
    assert float((low.float() - high).norm() / high.norm()) < 0.05
