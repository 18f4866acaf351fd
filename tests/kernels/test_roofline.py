"""The roofline's bytes and FLOPs, counted; the committed table is what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from r1lite.config import R1Config
from r1lite.kernels.cases import cases
from r1lite.kernels.roofline import PEAKS, bound, roofline_table, traffic
from r1lite.kernels.work import Workload
from r1lite.kernels.workloads import workloads
from r1lite.planner.hardware import hardware

TABLE = Path(__file__).parents[2] / "results" / "kernels" / "roofline.md"
WORK = {w.name: w for w in workloads(R1Config.preset("nano"), 6, "meta", torch.float32)}


def test_the_table_is_made_again() -> None:
    assert roofline_table() == TABLE.read_text()


def test_every_kernel_that_is_compiled_has_a_roofline() -> None:
    """Several kernels may do one operation; none is left out."""
    for case in cases("sm_90"):
        name = case.name.replace(" in groups", "").split(", parts")[0]
        name = {
            "attention, dk dv": "attention, backward",
            "attention, dq": "attention, backward",
            "mla_decode, merge": "mla_decode",
            "grouped product, dW": "grouped product, backward",
            "router, backward": "router",  # reads and writes what forward does
            "int8, one row": "int8 one row",
            "int4, one row": "int4 one row",
        }.get(name, name)
        assert name in WORK, case.name


def test_bytes_are_those_of_every_tensor_once() -> None:
    """By hand: 6 tokens of nano's width, in float32."""
    n = R1Config.preset("nano").hidden_size
    assert traffic(WORK["rms_norm"]) == 4 * (6 * n + n + 6 * n + 6)
    inner = R1Config.preset("nano").moe_intermediate_size
    assert traffic(WORK["swiglu"]) == 4 * 3 * 6 * inner
    blocks = -(-n // 128)
    assert traffic(WORK["act_quant"]) == 4 * 6 * n + 6 * n + 4 * 6 * blocks
    codes, scales, zeros = n // 2 * inner, 4 * n // 32 * inner, 4 * n // 32 * inner
    assert traffic(WORK["int4 one row"]) == codes + scales + zeros + 4 * (n + inner)


@pytest.mark.parametrize(
    "name", ["fp8 product", "int8 product", "int4 one row", "grouped product",
             "token_logprobs"],
)  # fmt: skip
def test_flops_are_those_that_torch_counts(name: str) -> None:
    work = next(w for w in _small() if w.name == name)
    with FlopCounterMode(display=False) as counter:
        work.runner(work.reference)()
    assert counter.get_total_flops() == work.flops


def test_causal_attention_needs_half_of_what_the_reference_does() -> None:
    work = next(w for w in _small() if w.name == "attention")
    with FlopCounterMode(display=False) as counter:
        work.runner(work.reference)()
    assert work.flops == counter.get_total_flops() * (6 + 1) / (2 * 6)


def _small() -> list[Workload]:
    """Workloads that need no kernel to be made are enough: the meta device's ops."""
    torch.manual_seed(0)
    return list(workloads(R1Config.preset("nano"), 6, "cpu", torch.float32))


def test_the_longer_of_two_times_is_the_bound() -> None:
    found = bound(989e12, "matrix", 3350, "sm_90")  # one second of H100's products
    assert (found.seconds, found.limit) == (1.0, "compute")
    found = bound(989e9, "matrix", 3_350_000_000_000, "sm_90")
    assert (found.seconds, found.limit) == (1.0, "memory")


def test_a_chip_without_e4m3_multiplies_in_16_bits() -> None:
    assert bound(1e15, "fp8", 1, "gfx942") == bound(1e15, "matrix", 1, "gfx942")
    assert bound(1e15, "fp8", 1, "sm_90").seconds < 0.6


def test_peaks_are_the_planners_where_it_has_the_chip() -> None:
    for chip, name in (("sm_80", "a100"), ("sm_90", "h100")):
        known = hardware(name)
        assert PEAKS[chip].matrix == known.flops
        assert PEAKS[chip].bandwidth == known.bandwidth
