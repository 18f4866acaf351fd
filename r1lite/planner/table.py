"""The plan as tables for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.planner.count import active_parameters, parameters, training_flops
from r1lite.planner.hardware import GB, Hardware
from r1lite.planner.layout import Layout
from r1lite.planner.memory import Precision, cache_bytes, rank_memory
from r1lite.planner.schedule import SCHEDULES, bubble_share, held_stages
from r1lite.planner.step import Assumptions, exchange_bytes, step_time


def plan_table(
    c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions, tokens: float | None
) -> Group:
    """Model, memory of each distinct stage, and the time of a step.

    `tokens`: of the whole run, for its cost; None leaves the cost out.
    """
    layout.check(c)
    a.check()
    if tokens is not None and not tokens > 0:
        raise R1Error(f"tokens: {tokens:g} is not above 0; give those of the whole run")
    tables = [_model(c, layout.seq), _memory(c, layout, gpu, a)]
    if layout.pp > 1:
        tables.append(_bubbles(layout))
    return Group(*tables, _time(c, layout, gpu, a, tokens))


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
    whole = cache_bytes(c, latent=False)
    table.add_row("  the same heads without MLA", f"{whole:,} bytes", "")
    return table


def _memory(c: R1Config, layout: Layout, gpu: Hardware, a: Assumptions) -> Table:
    # V3 keeps what its FP8 products read in FP8 (section 3.3.3).
    precision = Precision(activation=1 if a.fp8_share else 2)
    kept = "FP8" if a.fp8_share else "bf16"
    title = f"GB per rank of {gpu.memory / GB:.0f} GB, {a.schedule}, {kept} activations"
    table = Table(title=title, caption="norms, up-projections and SwiGLU made again")
    for name in ("pp rank", "layers", "weights", "gradients", "optimizer"):
        table.add_column(name, justify="right")
    table.add_column("activations", justify="right")
    table.add_column("all", justify="right")
    for stage in dict.fromkeys((0, layout.pp // 2, layout.pp - 1)):
        m = rank_memory(c, layout, stage, precision, schedule=a.schedule)
        row = (m.weights, m.gradients, m.optimizer, m.activations, m.total)
        table.add_row(
            str(stage),
            str(_layers(c, layout, a.schedule, stage)),
            *(f"{v / GB:.2f}" for v in row),
            style="red" if m.total > gpu.memory else "",
        )
    return table


def _layers(c: R1Config, layout: Layout, schedule: str, rank: int) -> int:
    parts, held, _ = held_stages(layout, schedule, rank)
    return sum(len(parts.stage_layers(c, s)) for s in held)


def _bubbles(layout: Layout) -> Table:
    table = Table("schedule", "waits, % of its work", title="Pipeline bubble")
    for schedule in SCHEDULES:
        if schedule != "dualpipe" or layout.pp % 2 == 0:
            table.add_row(schedule, f"{bubble_share(layout, schedule):.1%}")
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
        f"{far:,.0f} between nodes"
        + (f" (at most {a.node_limit} a token)" if a.node_limit else ""),
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
