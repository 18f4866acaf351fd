"""How long a training step takes, by an explicit model with its parts in view.

time = compute / efficiency + bubble + what of the all-to-all is not hidden
"""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.planner.count import training_flops
from r1lite.planner.hardware import Hardware
from r1lite.planner.layout import Layout
from r1lite.planner.schedule import bubble_share
from r1lite.planner.traffic import expected_rows


@dataclass(frozen=True)
class Assumptions:
    """What cannot be read off a configuration; each is a knob of the command.

    Attributes:
        efficiency: share of the peak that the matrix products reach.
        fp8_share: share of the FLOPs done at the FP8 rate.
        overlap: share of the all-to-all that runs behind compute (DualPipe: all).
        dispatch_bytes, combine_bytes: per number (V3: FP8 out, bf16 back).
        node_limit: nodes a token may go to, once to each (V3: 4); None sends a row
            per pick, wherever its expert is.
        schedule: "1f1b", "zb1p", "dualpipe" or "dualpipev".
    """

    efficiency: float = 0.4
    fp8_share: float = 0.0
    overlap: float = 0.0
    dispatch_bytes: float = 2
    combine_bytes: float = 2
    node_limit: int | None = None
    schedule: str = "1f1b"

    def check(self) -> None:
        """Raise R1Error naming the first number that cannot be."""
        rules = [
            ("efficiency", 0 < self.efficiency <= 1, "above 0 and at most 1"),
            ("fp8_share", 0 <= self.fp8_share <= 1, "from 0 to 1"),
            ("overlap", 0 <= self.overlap <= 1, "from 0 to 1"),
            ("node_limit", self.node_limit is None or self.node_limit > 0, "1 up"),
        ]
        for name, fits, wanted in rules:
            if not fits:
                raise R1Error(f"{name}: {getattr(self, name)} is out; give {wanted}")


V3_ASSUMPTIONS = Assumptions(
    fp8_share=0.9,
    overlap=1.0,
    dispatch_bytes=1,
    node_limit=4,
    schedule="dualpipe",
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what they are made of."""

    compute: float
    bubble: float
    exchange: float
    exposed: float

    @property
    def total(self) -> float:
        """Compute, bubble and the part of the exchange that nothing hides."""
        return self.compute + self.bubble + self.exposed


def exchange_bytes(
    c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions
) -> tuple[float, float]:
    """(inside a node, between nodes) bytes a token sends per MoE layer, one pass.

    The rows of `expected_rows` out and back; the K expert numbers and weights that
    travel with a row, one per cent of V3's bytes, are left out.
    """
    numbers = c.hidden_size * (a.dispatch_bytes + a.combine_bytes)
    across, inside = expected_rows(c, layout.ep, gpu.gpus_per_node, a.node_limit)
    return inside * numbers, across * numbers


def step_time(
    c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions | None = None
) -> StepTime:
    """Seconds of one step of the global batch on all GPUs."""
    a = a or Assumptions()
    a.check()
    layout.check(c)
    flops = training_flops(c, layout.seq) * layout.tokens / layout.gpus
    seconds = flops * (a.fp8_share / gpu.fp8_flops + (1 - a.fp8_share) / gpu.flops)
    compute = seconds / a.efficiency
    near, far = exchange_bytes(c, layout, gpu, a)
    blocks = range(c.num_hidden_layers + c.num_nextn_predict_layers)
    layers = sum(c.is_moe(i) for i in blocks)
    tokens = layout.tokens / layout.gpus  # of one stage's ranks, over all stages
    # Twice: the backward pass sends gradients along the same ways.
    exchange = 2 * layers * tokens * max(near / gpu.node_bytes, far / gpu.net_bytes)
    return StepTime(
        compute,
        compute * bubble_share(layout, a.schedule),
        exchange,
        exchange * (1 - a.overlap),
    )
