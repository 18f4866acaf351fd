"""Pipeline schedules: bubbles of V3's table 2, and which stages a rank holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.planner.layout import Layout
from r1lite.planner.memory import rank_memory
from r1lite.planner.schedule import SCHEDULES, bubble_share, held_stages

V3 = R1Config.preset("v3")
FOUR = Layout(gpus=4, pp=4, rows=12)
TIME = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}  # I: the first half of a B


def test_no_pipeline_no_bubble() -> None:
    assert {bubble_share(Layout(gpus=8, ep=8, rows=8), s) for s in SCHEDULES} == {0.0}


def test_bubbles_by_hand() -> None:
    """Four stages, 12 micro-batches: work 12 (F + B) = 36 F on each rank."""
    wanted = {"1f1b": 3 * 3, "zb1p": 3 * 1, "dualpipe": 1 * 2, "dualpipev": 3 * 1}
    for schedule, idle in wanted.items():
        assert bubble_share(FOUR, schedule) == pytest.approx(idle / 36)


def test_1f1b_as_a_share_of_the_whole_step() -> None:
    """(pp - 1) / (m + pp - 1), the form in which it is usually written."""
    share = bubble_share(FOUR, "1f1b")
    assert share / (1 + share) == pytest.approx(3 / (12 + 3))


def waits(name: str, pp: int, m: int, together: bool) -> float:
    """Idle time of torch's own schedule in forward passes of a rank.

    together: F&B is one piece, whose results leave at its end.
    """
    per_rank = 1 if name == "1F1B" else 2
    orders = [blocks(ops, together) for ops in get_schedule_ops(name, pp, m)]
    done: dict[tuple[int, str, int], float] = {}
    free = [0.0] * pp
    while any(orders):
        for rank, order in enumerate(orders):
            while order:
                needs = [need(*task, pp * per_rank - 1) for task in order[0]]
                needs = [n for n in needs if n and n not in order[0]]
                if not all(n in done for n in needs):
                    break
                block = order.pop(0)
                start = max([free[rank], *(done[n] for n in needs)])
                free[rank] = start + sum(TIME[kind] for _, kind, _ in block) / per_rank
                for stage, kind, batch in block:
                    done[stage, "B" if kind == "I" else kind, batch] = free[rank]
    return max(free) - 3 * m


def blocks(operations: list[Any], together: bool) -> list[list[tuple[int, str, int]]]:
    """A rank's tasks (stage, kind, micro-batch), what is overlapped in one list."""
    seen: dict[tuple[int, str], int] = {}
    found = []
    for action in operations:
        block = []
        for part in (action and action.sub_actions) or (action,):
            kind = part.computation_type.value if part else ""
            if kind in TIME:
                key = part.stage_index, "B" if kind == "I" else kind
                seen[key] = seen.get(key, -1) + 1
                batch = part.microbatch_index if kind == "W" else seen[key]
                block.append((part.stage_index, kind, batch))
        found += [block] if together else [[task] for task in block]
    return [block for block in found if block]


def need(stage: int, kind: str, batch: int, last: int) -> tuple[int, str, int] | None:
    """What has to be done before; a W waits for its own first half."""
    if kind == "F":
        return (stage - 1, "F", batch) if stage else None
    if kind == "W":
        return stage, "B", batch
    return (stage, "F", batch) if stage == last else (stage + 1, "B", batch)


@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("m", [16, 20])
def test_formulas_are_the_waits_of_torchs_schedules(pp: int, m: int) -> None:
    layout = Layout(gpus=pp, pp=pp, rows=m)
    line, vee = (bubble_share(layout, s) * 3 * m for s in ("1f1b", "dualpipev"))
    assert waits("1F1B", pp, m, True) == pytest.approx(line)
    assert waits("DualPipeV", pp, m, True) == pytest.approx(vee)
    assert waits("DualPipeV", pp, m, False) == pytest.approx(vee / 2)


def test_stages_of_a_rank() -> None:
    assert held_stages(FOUR, "zb1p", 1)[1:] == ([1], 1)
    assert held_stages(FOUR, "dualpipe", 1)[1:] == ([1, 2], 2)
    halves, held, copies = held_stages(FOUR, "dualpipev", 1)
    assert (halves.pp, held, copies) == (8, [1, 6], 1)
    assert (halves.dp, halves.micro_batches) == (FOUR.dp, FOUR.micro_batches)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_layer_is_held_as_often_as_it_should(schedule: str) -> None:
    held: list[int] = []
    for rank in range(4):
        parts, stages, copies = held_stages(FOUR, schedule, rank)
        for stage in stages:
            held += parts.stage_layers(V3, stage)
    assert sorted(held) == sorted(copies * list(range(61)))


def test_memory_of_table_2() -> None:
    """Alive: PP micro-batches in 1F1B, PP + 1 in DualPipe, which holds weights twice;
    DualPipeV has half-stages, once each. Equal layers, so the ratios are exact."""
    even = R1Config.preset("nano").with_(
        num_hidden_layers=8, first_k_dense_replace=0, num_nextn_predict_layers=0
    )
    layout = dataclasses.replace(FOUR, rows=64)
    one, two, vee = (
        rank_memory(even, layout, 1, schedule=s)
        for s in ("1f1b", "dualpipe", "dualpipev")
    )
    first = rank_memory(even, layout, 0).activations
    assert two.weights == 2 * one.weights
    assert two.optimizer == one.optimizer
    assert vee.weights == one.weights
    assert two.activations == first * 5 / 4
    assert vee.activations == first * 4.5 / 4


@pytest.mark.parametrize(
    ("pp", "schedule", "words"),
    [(4, "gpipe", "choose 1f1b, zb1p"), (3, "dualpipe", "3 is odd")],
)
def test_what_does_not_fit_is_named(pp: int, schedule: str, words: str) -> None:
    layout = Layout(gpus=12, pp=pp, rows=24)
    with pytest.raises(R1Error, match=words):
        bubble_share(layout, schedule)
    with pytest.raises(R1Error, match=words):
        held_stages(layout, schedule, 0)
