"""Every recipe that comes with the package: it loads, fits and can be planned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from r1lite import R1Model, pipeline
from r1lite import recipe as recipes
from r1lite.cli import cli
from r1lite.data.config import ARTICLE
from r1lite.data.feeds import SCAN
from r1lite.errors import R1Error
from r1lite.pipeline import controls, room, run_recipe
from r1lite.pipeline.measure import Way
from r1lite.planner.count import parameters
from r1lite.planner.layout import Layout
from r1lite.report.schema import Report
from r1lite.training import metrics
from r1lite.training.loop import StageResult
from r1lite.training.schedule import V3_PHASES, V3_RAMP

COST = {
    name: StageResult(name, 1, 1.0, tokens)
    for tokens, name in enumerate(("clean", "continued", "expert", "rl"), 10)
}
SIZES = {  # millions of parameters, as DESIGN and README promise them
    "nano": (1, 2),
    "micro": (10, 21),
    "small": (150, 200),
    "1b": (900, 1300),
    "v3": (671_000, 684_000),  # with the MTP module
}


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_is_of_its_size(name: str) -> None:
    recipe = recipes.load(name)
    config = recipe.model_config_for()
    low, high = SIZES[name]
    assert low <= sum(parameters(config).values()) / 1e6 <= high
    assert recipe.name == name and recipe.description
    assert recipe.data.mixture == ARTICLE
    assert recipe.model_config_for().vocab_size == recipe.tokenizer.vocab_size
    assert recipes.parse(recipes.Recipe, recipes.tomllib.loads(recipe.to_toml()), "x")


@pytest.mark.parametrize("name", ["small", "1b", "v3"])
def test_large_recipes_stream_and_are_built_on_the_meta_device(name: str) -> None:
    recipe = recipes.load(name)
    streamed = {d for d, found in recipe.data.streams.items() if found}
    assert streamed == set(ARTICLE)
    assert all(not recipe.data.sources[d] for d in streamed)
    # Enough of a stream's first documents are held out to measure it by.
    assert recipe.data.heldout * SCAN >= 20
    config = recipe.model_config_for()
    with torch.device("meta"):
        model = R1Model(config)
    total = sum(p.numel() for p in model.parameters())
    assert total == sum(parameters(config).values())
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_v3_has_the_published_schedule() -> None:
    pretrain = recipes.load("v3").pretrain
    assert pretrain.tokens == pytest.approx(14.8e12, rel=1e-4)
    sizes = pretrain.plan().sizes
    assert (sizes[0], max(sizes)) == (3072, 15360)
    for mine, published in zip(pretrain.phases, V3_PHASES, strict=True):
        assert mine.share == pytest.approx(published.share, abs=1e-6)
        assert (mine.start, mine.end) == (published.start, published.end)
    assert pretrain.ramp.share == pytest.approx(V3_RAMP.share)


@pytest.mark.parametrize("name", ["small", "1b", "v3"])
def test_its_batches_divide_among_its_ranks(name: str) -> None:
    recipe = recipes.load(name)
    p = recipe.parallel
    readers = max(1, p.dp) * p.ep
    unit = readers * p.micro_batches if p.pp > 1 else 1
    recipe.pretrain.plan().check_shares(readers, unit)
    batch, seq = recipe.pretrain.batch_size, recipe.pretrain.seq_len
    layout = Layout(readers * p.pp, p.pp, p.ep, batch, seq)
    layout.check(recipe.model_config_for())


@pytest.mark.parametrize("name", SIZES)
def test_it_can_be_planned(name: str) -> None:
    given = {"v3": ["--gpus=2048", "--pp=16", "--ep=64"], "1b": ["--ep=8"]}
    done = CliRunner().invoke(cli, ["plan", name, *given.get(name, ["--gpus=1"])])
    assert done.exit_code == 0, done.output
    assert "routed experts" in done.output and "GB per rank" in done.output


def test_a_model_without_room_is_refused_before_a_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        R1Error, match=r"^model: 68\d\.\d B parameters need 10,9\d\d GB"
    ):
        run_recipe(recipes.load("v3"), out, Console(), progress=False)
    assert not out.exists()
    monkeypatch.setattr(room, "_memory", lambda *_: 16 * 10**6)
    with pytest.raises(R1Error, match=r"plan nano"):
        room.require_room(recipes.load("nano"))
    monkeypatch.setattr(room, "_memory", lambda *_: 16 * 2 * 10**6)
    room.require_room(recipes.load("nano"))
    # Muon has one moment: a run that uses nothing else needs a quarter less.
    size = sum(parameters(recipes.load("nano").model_config_for()).values())
    monkeypatch.setattr(room, "_memory", lambda *_: 12 * size)
    with pytest.raises(R1Error, match="GB"):
        room.require_room(recipes.load("nano"))
    only = {f"{stage}.optim.name": "muon" for stage in ("pretrain", "sft", "grpo")}
    room.require_room(recipes.load("nano", only))


def test_only_the_controls_that_a_recipe_names_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("clean", "continued", "expert"):
        monkeypatch.setattr(controls, f"make_{name}", lambda *_, n=name: COST[n])
    measure = cast(Any, SimpleNamespace(best_temperature=lambda name, **_: Way(name)))
    for trained, numbers in (
        ([], {1, 2}),
        (["expert"], {1, 2, 5}),
        (["continued", "clean"], {1, 2, 3, 4}),
    ):
        recipe = recipes.load("smoke", {"controls.trained": trained})
        context = cast(Any, SimpleNamespace(recipe=recipe))
        made = controls.make_all(context, COST["rl"])
        assert made == {name: COST[name] for name in trained}
        rows = pipeline._controls(measure, {"grpo": COST["rl"], **made})
        assert {c.id for c in rows} == numbers
        for name in trained:
            (row,) = (c for c in rows if c.policy == name)
            assert row.budget_tokens == COST[name].tokens
    with pytest.raises(R1Error, match=r"controls\.trained"):
        recipes.load("smoke", {"controls.trained": ["ppo"]})


def test_without_a_network_one_line_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r1lite", "run", "small"]
    done = subprocess.run(
        [*command, "--quiet", f"--out={tmp_path / 'run'}"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("r1lite: data.streams.general: HuggingFaceFW/fineweb-edu")
    assert "cannot be opened on the hub" in last and "local file" in last


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Streams of three domains from files; mathematics is generated as ever."""
    root = tmp_path_factory.mktemp("files")
    streams = {}
    for domain in ("general", "code", "languages"):
        path = root / f"{domain}.jsonl"
        texts = [f"{domain} text {i} of {i * i % 97} words. " * 5 for i in range(80)]
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        streams[domain] = [{"path": str(path)}]
    return streams


def streaming(out: Path, streams: object) -> list[str]:
    """A short run of the smoke recipe on streamed text."""
    inline = json.dumps(streams).replace(": ", " = ").replace('"path" =', "path =")
    for domain in ("general", "code", "languages"):
        inline = inline.replace(f'"{domain}" =', f"{domain} =")
    changes = {
        "data.streams": inline,
        "data.heldout": "0.2",
        "pretrain.steps": "60",
        "pretrain.ramp": "{start = 0.5, share = 0.5}",
        "checkpoint_seconds": "0.0",
        "sft.steps": "1",
        "grpo.steps": "1",
        "controls.enabled": "false",
        "evaluation.sweep": "[]",
        "tokenizer.train_bytes": "20000",
    }
    sets = [f"--set={k}={v}" for k, v in changes.items()]
    run = [sys.executable, "-m", "r1lite", "run", "smoke", "--quiet"]
    return [*run, f"--out={out}", *sets]


def finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_streamed_run_killed_and_resumed_is_the_same_run(
    local: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(streaming(whole, local))
    process = subprocess.Popen(streaming(cut, local), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(r["step"] >= 46 for r in metrics.read(cut / "metrics.jsonl")):
            break
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    lines = (cut / "streams" / "pack.jsonl").read_text().splitlines()
    assert len(lines) == 2  # killed in the second block: it starts from its cursors
    finish(streaming(cut, local))
    for a, b in zip(*(_learnt(x) for x in (whole, cut)), strict=True):
        assert a == b
    ours, theirs = (load_file(x / "base" / "model.safetensors") for x in (whole, cut))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    report = Report.load(cut)
    for domain in report.mixture:
        assert domain.measured == pytest.approx(domain.asked, abs=1e-4)
    assert {d.domain for d in report.held_out} >= {"general", "code", "languages"}
    assert json.loads((cut / "results" / "mixture.json").read_text()) == json.loads(
        (whole / "results" / "mixture.json").read_text()
    )


def _learnt(run: Path) -> list[tuple[float, ...]]:
    rows = metrics.read(run / "metrics.jsonl")
    names = ("step", "tokens", "lr", "loss", "grad_norm")
    return [tuple(r[n] for n in names) for r in rows if r["stage"] == "pretrain"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"sft.optim.lr": 1e-3}, ("sft", "optim", "name", "muon")),
        ({"pretrain.optim.muon_lr": 0.01}, ("pretrain", "optim", "name", "muon")),
        ({"grpo.optim.lr": 1e-4}, ("grpo", "optim", "weight_decay", 0.0)),
        ({"r1.second.steps": 10}, ("r1", "second", "temperature", 0.7)),
        ({"r1.second.optim.lr": 1e-4}, ("r1", "second", "kl_coef", 0.001)),
    ],
    ids=lambda x: ".".join(x[:3]) if isinstance(x, tuple) else None,
)
def test_one_field_changed_leaves_the_others_of_its_section(
    change: dict[str, Any], kept: tuple[Any, ...]
) -> None:
    before, after = recipes.load("nano"), recipes.load("nano", change)
    *path, last, value = kept
    for name in path:
        after = getattr(after, name)
    assert getattr(after, last) == value
    plain = recipes.load("nano", change).model_dump(mode="json")
    ((dotted, _),) = change.items()
    *parents, field = dotted.split(".")
    part, same = plain, before.model_dump(mode="json")
    for name in parents:
        part, same = part[name], same[name]
    same_field = same.pop(field)
    assert part.pop(field) != same_field
    assert part == same


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("grpo.minibatches", 0, "at least 1"),
        ("grpo.temperature", 0.0, "at least 1e-06"),
        ("grpo.temperature", -1.0, "at least 1e-06"),
        ("grpo.group_size", 1, "at least 2"),
        ("grpo.optim.clip", 0.0, "at least 1e-06"),
        ("sft.tokens", 0, "at least 1"),
        ("evaluation.problems", 0, "at least 1"),
        ("evaluation.levels", ["chain"], "choose chain/"),
        ("evaluation.levels", ["chian/4"], "chian"),
        ("controls.expert.seq_len", 513, "exceed the context of 512"),
        ("controls.expert.max_new_tokens", 10**6, "exceed the context of 512"),
        ("grpo.max_new_tokens", 512, "exceed the context of 512"),
        ("guard.window", 5, "guard.first"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    field: str, value: Any, why: str
) -> None:
    with pytest.raises(R1Error, match=f"^{field}: .*{why}"):
        recipes.load("nano", {field: value})


def test_the_second_rl_is_checked_where_it_runs() -> None:
    change = {"r1.second.minibatches": 0}
    recipes.load("nano", change)
    with pytest.raises(R1Error, match=r"^r1\.second\.minibatches: 0"):
        recipes.load("nano", {**change, "r1.enabled": True})
