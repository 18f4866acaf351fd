"""Pipeline schedules: which stages a rank has, and how long it waits.

V3 (arXiv 2412.19437, table 2), with F a stage's forward pass, B = 2 F its whole
backward pass, W = F the part of it that makes weight gradients, and F&B = F + B:

    1F1B       (pp - 1) (F + B)
    ZB1P       (pp - 1) (F + B - 2 W)
    DualPipe   (pp / 2 - 1) (F&B + B - 3 W)     each rank has two stages
    DualPipeV  DualPipe's with 2 pp half-sized stages, each held once

F&B is one piece here: nothing leaves before both are done. Where a rank does F and
then B, as torch's schedule on one stream, the next rank starts earlier and DualPipeV
waits half as long (`r1lite.parallel.timetable`).
"""

from __future__ import annotations

from dataclasses import replace

from r1lite.errors import R1Error
from r1lite.planner.layout import Layout

SCHEDULES = ("1f1b", "zb1p", "dualpipe", "dualpipev")


def check_schedule(layout: Layout, schedule: str) -> None:
    """Raise R1Error for an unknown schedule, or one that `pp` does not fit."""
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise R1Error(f"schedule: {schedule!r} is unknown; choose {known}")
    if schedule == "dualpipe" and layout.pp > 1 and layout.pp % 2:
        raise R1Error(f"pp: dualpipe pairs stages, {layout.pp} is odd; give an even pp")


def bubble_share(layout: Layout, schedule: str) -> float:
    """Idle time over busy time: m micro-batches keep a stage busy for m (F + B)."""
    check_schedule(layout, schedule)
    m, pp, f = layout.micro_batches, layout.pp, 1.0
    b, w = 2 * f, f
    if pp == 1:
        return 0.0
    idle = {
        "1f1b": (pp - 1) * (f + b),
        "zb1p": (pp - 1) * (f + b - 2 * w),
        "dualpipe": (pp / 2 - 1) * (f + b + b - 3 * w),
        "dualpipev": (2 * pp / 2 - 1) * (f + b + b - 3 * w) / 2,
    }
    return idle[schedule] / (m * (f + b))


def held_stages(
    layout: Layout, schedule: str, rank: int
) -> tuple[Layout, list[int], int]:
    """The stages of pipeline rank `rank`.

    Returns:
        the layout that numbers them, their numbers, and how many ranks hold each.
    """
    check_schedule(layout, schedule)
    if layout.pp > 1 and schedule == "dualpipe":
        return layout, [rank, layout.pp - 1 - rank], 2
    if layout.pp > 1 and schedule == "dualpipev":
        halves = replace(layout, pp=2 * layout.pp, gpus=2 * layout.gpus)
        return halves, [rank, halves.pp - 1 - rank], 1
    return layout, [rank], 1
