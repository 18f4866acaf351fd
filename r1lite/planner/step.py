"""How long a training step takes, by an explicit model with its parts in view.

time = compute / efficiency + bubble + what of the all-to-all is not hidden
"""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.config import R1Config
from r1lite.planner.count import training_flops
from r1lite.planner.hardware import Hardware
from r1lite.planner.layout import Layout


@dataclass(frozen=True)
class Assumptions:
    """What cannot be read off a configuration; each is a knob of the command.

    Attributes:
        efficiency: share of the peak that the matrix products reach.
        fp8_share: share of the FLOPs done at the FP8 rate.
        overlap: share of the all-to-all that runs behind compute (DualPipe: all).
        dispatch_bytes, combine_bytes: per number (V3: FP8 out, bf16 back).
        node_limit: nodes a token's experts may lie on (V3: 4).
        schedule: "1f1b" or "dualpipe".
    """

    efficiency: float = 0.4
    fp8_share: float = 0.0
    overlap: float = 0.0
    dispatch_bytes: float = 2
    combine_bytes: float = 2
    node_limit: int | None = None
    schedule: str = "1f1b"


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

    A token goes to `top_k` experts, spread evenly over the ep ranks; what lies on
    its own rank is not sent. Between nodes a token is sent once to each node it
    needs, at most `node_limit`, and handed on inside.
    """
    numbers = c.hidden_size * (a.dispatch_bytes + a.combine_bytes)
    copies = c.num_experts_per_tok * (1 - 1 / layout.ep)
    nodes = max(1, layout.ep // gpu.gpus_per_node)
    limit = min(nodes, a.node_limit or nodes)
    # Nodes met by K even choices among `limit`; its own node is one of all.
    met = limit * (1 - (1 - 1 / limit) ** c.num_experts_per_tok)
    away = met * (1 - 1 / nodes)
    return copies * numbers, away * numbers


def bubble_share(layout: Layout, schedule: str) -> float:
    """Idle time over busy time of a pipeline (V3, table 2).

    1F1B waits (pp - 1) (F + B) in m (F + B). DualPipe waits
    (pp / 2 - 1) (F&B + B - 3 W), with F&B = F + B, B = 2 F and W = F.
    """
    m, pp = layout.micro_batches, layout.pp
    if pp == 1:
        return 0.0
    if schedule == "1f1b":
        return (pp - 1) / m
    f = 1.0
    return (pp / 2 - 1) * (3 * f + 2 * f - 3 * f) / (3 * f * m)


def step_time(
    c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions | None = None
) -> StepTime:
    """Seconds of one step of the global batch on all GPUs."""
    a = a or Assumptions()
    layout.check(c)
    flops = training_flops(c, layout.seq) * layout.tokens / layout.gpus
    seconds = flops * (a.fp8_share / gpu.fp8_flops + (1 - a.fp8_share) / gpu.flops)
    compute = seconds / a.efficiency
    near, far = exchange_bytes(c, layout, gpu, a)
    layers = sum(c.is_moe(i) for i in range(c.num_hidden_layers))
    tokens = layout.tokens / layout.gpus  # of one stage's ranks, over all stages
    # Twice: the backward pass sends gradients along the same ways.
    exchange = 2 * layers * tokens * max(near / gpu.node_bytes, far / gpu.net_bytes)
    return StepTime(
        compute,
        compute * bubble_share(layout, a.schedule),
        exchange,
        exchange * (1 - a.overlap),
    )
