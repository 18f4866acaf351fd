"""Memory, messages and time: against measurements here and V3's paper."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from r1lite.cli import cli
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.planner.activations import layer_activations
from r1lite.planner.hardware import KNOWN, hardware
from r1lite.planner.layout import Layout
from r1lite.planner.memory import (
    Precision,
    cache_bytes,
    rank_memory,
    stage_parameters,
)
from r1lite.planner.step import (
    V3_ASSUMPTIONS,
    Assumptions,
    exchange_bytes,
    step_time,
)

V3 = R1Config.preset("v3")
V3_LAYOUT = Layout(gpus=2048, pp=16, ep=64, rows=15360, seq=4096)


def test_cache_of_v3() -> None:
    """One latent and one key per layer, or every head's keys and values: 71 times."""
    assert cache_bytes(V3) == 70_272
    assert cache_bytes(V3, latent=False) == 4_997_120


def test_stages_hold_every_parameter_once() -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in R1Model(V3).parameters())
    for pp in (1, 4, 16, 61):
        layout = dataclasses.replace(V3_LAYOUT, pp=pp, gpus=pp * 64)
        stages = [stage_parameters(V3, layout, s) for s in range(pp)]
        assert sum(a + b for a, b in stages) == built


def test_one_gpu_by_hand() -> None:
    """Everything on one rank: 2 + 4 + 4 + 4 bytes a parameter."""
    config = R1Config.preset("nano")
    built = sum(p.numel() for p in R1Model(config).parameters())
    found = rank_memory(config, Layout(rows=1, seq=8))
    assert found.weights + found.gradients + found.optimizer == 14 * built
    wanted = (2 * built, 4 * built, 8 * built)
    assert (found.weights, found.gradients, found.optimizer) == wanted
    double = rank_memory(config, Layout(rows=1, seq=16))
    assert double.activations == 2 * found.activations
    wide = rank_memory(config, Layout(rows=1, seq=8), precision=Precision(weight=4))
    assert wide.weights == 2 * found.weights


def test_v3_fits_its_gpus_only_in_parallel() -> None:
    alone = rank_memory(V3, Layout(rows=1))
    assert alone.total > 100 * KNOWN["h800"].memory
    for stage in range(16):
        found = rank_memory(
            V3, V3_LAYOUT, stage, Precision(activation=1), schedule="dualpipe"
        )
        assert found.total < KNOWN["h800"].memory


def test_the_last_stage_keeps_the_mtp_block_too() -> None:
    """One more MoE block, of the one micro-batch that is alive there."""
    without = V3.with_(num_nextn_predict_layers=0)
    for stage, blocks in ((0, 0), (14, 0), (15, 1)):
        with_, trunk = (rank_memory(c, V3_LAYOUT, stage) for c in (V3, without))
        more = with_.activations - trunk.activations
        assert more == blocks * 4096 * 2 * layer_activations(V3, 61, "v3")


def test_exchange_by_hand() -> None:
    """Two ranks of one node, K = 2: half of two copies leaves the rank."""
    config = R1Config.preset("nano")
    layout = Layout(gpus=2, ep=2, rows=2)
    near, far = exchange_bytes(config, layout, KNOWN["h100"], Assumptions())
    assert near == 2 * 0.5 * 96 * (2 + 2)
    assert far == 0.0


def test_a_node_limit_bounds_what_crosses_nodes() -> None:
    free = dataclasses.replace(V3_ASSUMPTIONS, node_limit=None)
    limited = exchange_bytes(V3, V3_LAYOUT, KNOWN["h800"], V3_ASSUMPTIONS)[1]
    assert limited < exchange_bytes(V3, V3_LAYOUT, KNOWN["h800"], free)[1]
    assert limited <= 4 * V3.hidden_size * 3


def test_v3s_cost_stands_beside_the_model() -> None:
    """At 40 % of the peak the model is too hopeful; the paper implies about 23 %."""
    steps = 14.8e12 / V3_LAYOUT.tokens

    def million_hours(efficiency: float) -> float:
        a = dataclasses.replace(V3_ASSUMPTIONS, efficiency=efficiency)
        seconds = step_time(V3, V3_LAYOUT, KNOWN["h800"], a).total
        return seconds * steps * V3_LAYOUT.gpus / 3600 / 1e6

    assert million_hours(0.4) < 2.664
    assert million_hours(0.232) == pytest.approx(2.664, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pp": 15}, "pp: 15 does not divide 2048"),
        ({"gpus": 8}, "pp: 16 does not divide 8 GPUs; choose another pp"),
        ({"pp": 128, "ep": 1}, "pp: 128 is more than the 61 layers"),
        ({"ep": 48}, "ep: 48 does not divide dp = 128"),
        ({"rows": 100}, "rows: 100 is no multiple"),
        ({"gpus": 0}, "gpus: 0 is not above 0"),
        ({"ep": 0}, "ep: 0 is not above 0"),
        ({"cut": "zero3"}, "cut: 'zero3' is unknown"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, int], words: str) -> None:
    with pytest.raises(R1Error, match=words):
        dataclasses.replace(V3_LAYOUT, **changes).check(V3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"efficiency": 0.0}, "efficiency: 0.0 is out"),
        ({"fp8_share": 1.1}, "fp8_share: 1.1 is out; give from 0 to 1"),
        ({"node_limit": 0}, "node_limit: 0 is out"),
        ({"schedule": "gpipe"}, "schedule: 'gpipe' is unknown"),
    ],
)
def test_assumptions_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    a = dataclasses.replace(V3_ASSUMPTIONS, **changes)
    with pytest.raises(R1Error, match=words):
        step_time(V3, V3_LAYOUT, KNOWN["h800"], a)


def test_the_mtp_module_sends_its_tokens_too() -> None:
    with_, without = (
        step_time(V3.with_(num_nextn_predict_layers=n), V3_LAYOUT, KNOWN["h800"])
        for n in (1, 0)
    )
    assert with_.exchange / without.exchange == pytest.approx(59 / 58)


def test_an_unknown_gpu_is_named() -> None:
    with pytest.raises(R1Error, match="choose h800"):
        hardware("tpu")


def test_the_command_shows_v3_and_refuses_nonsense() -> None:
    words = "plan v3 --gpus 2048 --gpu h800 --pp 16 --ep 64 --rows 15360 --like-v3"
    done = CliRunner().invoke(cli, [*words.split(), "--tokens", "14.8e12"])
    assert done.exit_code == 0
    assert "653,908,770,816" in done.output
    assert "GPU hours" in done.output
    assert "dualpipev" in done.output and "at most 4" in done.output
    done = CliRunner().invoke(cli, ["plan", "nano", "--gpus", "3", "--ep", "3"])
    assert "does not divide 8 experts" in str(done.exception)
    for words in ("--gpus 0", "--pp 0", "--micro-rows 0", "--tokens -1"):
        done = CliRunner().invoke(cli, ["plan", "nano", *words.split()])
        assert isinstance(done.exception, R1Error)
    done = CliRunner().invoke(cli, ["plan", "smoke", "--gpus", "1", "--rows", "4"])
    assert done.exit_code == 0
