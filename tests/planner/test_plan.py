"""Memory, messages and time: against measurements here and V3's paper."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from r1lite.cli import cli
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.memory.meter import SavedTensors
from r1lite.model import R1Model
from r1lite.planner.hardware import KNOWN, hardware
from r1lite.planner.layout import Layout
from r1lite.planner.memory import (
    Precision,
    cache_bytes,
    layer_activations,
    rank_memory,
    stage_parameters,
)
from r1lite.planner.step import (
    V3_ASSUMPTIONS,
    Assumptions,
    bubble_share,
    exchange_bytes,
    step_time,
)

V3 = R1Config.preset("v3")
V3_LAYOUT = Layout(gpus=2048, pp=16, ep=64, rows=15360, seq=4096)


def measured_activations(config: R1Config, seq: int) -> float:
    """Numbers per token that autograd really keeps for block 1."""
    torch.manual_seed(0)
    model = R1Model(config).train()
    block = model.layers[1]
    x = torch.randn(1, seq, config.hidden_size, requires_grad=True)
    turn = model.rope(torch.arange(seq)[None], x.dtype)
    with SavedTensors(model) as meter:
        out = block(x, turn)
    assert out.requires_grad
    return meter.bytes / 4 / seq


def test_activations_are_near_what_autograd_keeps() -> None:
    """Within a quarter: copies that a layout forces are not in the formula."""
    config = R1Config.preset("nano").with_(num_nextn_predict_layers=0)
    wanted = layer_activations(config, 1)
    assert measured_activations(config, 256) == pytest.approx(wanted, rel=0.25)


def test_recomputing_keeps_less() -> None:
    for layer in (0, 5):
        assert layer_activations(V3, layer, True) < layer_activations(V3, layer)


def test_cache_of_v3() -> None:
    assert cache_bytes(V3) == 70_272


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
    double = rank_memory(config, Layout(rows=1, seq=16))
    assert double.activations == 2 * found.activations
    wide = rank_memory(config, Layout(rows=1, seq=8), precision=Precision(weight=4))
    assert wide.weights == 2 * found.weights


def test_v3_fits_its_gpus_only_in_parallel() -> None:
    alone = rank_memory(V3, Layout(rows=1))
    assert alone.total > 100 * KNOWN["h800"].memory
    last = rank_memory(V3, V3_LAYOUT, stage=15)
    assert last.total < KNOWN["h800"].memory


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


def test_bubbles() -> None:
    assert bubble_share(Layout(gpus=8, ep=8, rows=8), "1f1b") == 0
    four = Layout(gpus=4, pp=4, rows=12)
    assert bubble_share(four, "1f1b") == 3 / 12
    assert bubble_share(four, "dualpipe") < bubble_share(four, "1f1b")


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
        ({"pp": 128, "ep": 1}, "pp: 128 is more than the 61 layers"),
        ({"ep": 48}, "ep: 48 does not divide dp = 128"),
        ({"rows": 100}, "rows: 100 is no multiple"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, int], words: str) -> None:
    with pytest.raises(R1Error, match=words):
        dataclasses.replace(V3_LAYOUT, **changes).check(V3)


def test_an_unknown_gpu_is_named() -> None:
    with pytest.raises(R1Error, match="choose h800"):
        hardware("tpu")


def test_the_command_shows_v3_and_refuses_nonsense() -> None:
    words = "plan v3 --gpus 2048 --gpu h800 --pp 16 --ep 64 --rows 15360 --like-v3"
    done = CliRunner().invoke(cli, [*words.split(), "--tokens", "14.8e12"])
    assert done.exit_code == 0
    assert "653,908,770,816" in done.output
    assert "GPU hours" in done.output
    done = CliRunner().invoke(cli, ["plan", "nano", "--gpus", "3", "--ep", "3"])
    assert "does not divide 8 experts" in str(done.exception)
    done = CliRunner().invoke(cli, ["plan", "smoke", "--gpus", "1", "--rows", "4"])
    assert done.exit_code == 0
