"""The plan as tables for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from r1lite.config import R1Config
from r1lite.planner.count import active_parameters, parameters, training_flops
from r1lite.planner.hardware import GB, Hardware
from r1lite.planner.layout import Layout
from r1lite.planner.memory import cache_bytes, rank_memory
from r1lite.planner.step import Assumptions, exchange_bytes, step_time


def plan_table(
    c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions, tokens: float | None
) -> Group:
    """Model, memory of each distinct stage, and the time of a step.

    `tokens`: of the whole run, for its cost; None leaves the cost out.
    """
    layout.check(c)
    return Group(
        _model(c, layout.seq), _memory(c, layout, gpu), _time(c, layout, gpu, a, tokens)
    )


def _model(c: R1Config, seq: int) -> Table:
    table = Table("part", "parameters", "share", title="Model")
    found = parameters(c)
    total = sum(found.values())
    for part, count in found.items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    table.add_row("all", f"{total:,}", "", style="bold")
    table.add_row("active for a token", f"{active_parameters(c):,}", "")
    flops = training_flops(c, seq)
    table.add_row("FLOPs of training a token", f"{flops:.3g}", "")
    table.add_row("cache per token, bf16", f"{cache_bytes(c):,} bytes", "")
    return table


def _memory(c: R1Config, layout: Layout, gpu: Hardware) -> Table:
    title = f"GB per rank of {gpu.memory / GB:.0f} GB, 1F1B, norms recomputed"
    table = Table(title=title)
    for name in ("stage", "layers", "weights", "gradients", "optimizer"):
        table.add_column(name, justify="right")
    table.add_column("activations", justify="right")
    table.add_column("all", justify="right")
    for stage in dict.fromkeys((0, layout.pp // 2, layout.pp - 1)):
        m = rank_memory(c, layout, stage)
        row = (m.weights, m.gradients, m.optimizer, m.activations, m.total)
        table.add_row(
            str(stage),
            str(len(layout.stage_layers(c, stage))),
            *(f"{v / GB:.2f}" for v in row),
            style="red" if m.total > gpu.memory else "",
        )
    return table


def _time(
    c: R1Config,
    layout: Layout,
    gpu: Hardware,
    a: Assumptions,
    tokens: float | None,
) -> Group:
    t = step_time(c, layout, gpu, a)
    near, far = exchange_bytes(c, layout, gpu, a)
    table = Table("of a step", "seconds", title=f"{layout.gpus} x {gpu.name}")
    for name in ("compute", "bubble", "exchange", "exposed", "total"):
        table.add_row(name, f"{getattr(t, name):.3g}")
    lines = [
        f"{layout.tokens:,} tokens a step; dp {layout.dp}, ep {layout.ep}, "
        f"pp {layout.pp}, {layout.micro_batches} micro-batches",
        f"all-to-all of a token and layer, one pass: {near:,.0f} bytes inside a node, "
        f"{far:,.0f} between nodes",
        f"assumed: {a.efficiency:.0%} of the peak, {a.fp8_share:.0%} in FP8, "
        f"{a.overlap:.0%} of the all-to-all hidden, {a.schedule}",
    ]
    if tokens:
        hours = tokens / layout.tokens * t.total / 3600
        lines.append(
            f"{tokens:.3g} tokens: {hours / 24:,.1f} days, "
            f"{hours * layout.gpus:,.0f} GPU hours"
        )
    return Group(table, *(Text(line) for line in lines))
