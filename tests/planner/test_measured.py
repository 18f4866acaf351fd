"""The committed table is what the planner says and processes here do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from benchmarks import planner_vs_measured as comparison

pytestmark = pytest.mark.slow
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
Found = dict[tuple[int, str], dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    return comparison.launch()


def test_rows_are_the_planners_to_the_last(found: Found) -> None:
    for values in found.values():
        for planned, sent in zip(values["planned"], values["counted"], strict=True):
            assert sum(planned) == sent  # layer by layer, by the dispatcher's count
        across, inside = (sum(layer) for layer in zip(*values["planned"], strict=True))
        assert values["sent"]["rows_across"] == 4 * across
        assert values["sent"]["rows_inside"] == 4 * inside


def test_rows_are_near_what_even_picks_send(found: Found) -> None:
    for row in comparison.traffic(found):
        even, counted = (float(row[i].replace(",", "")) for i in (2, 4))
        assert counted == pytest.approx(even, rel=0.15)


def test_dispatch_by_nodes_saves_rows_between_nodes(found: Found) -> None:
    flat, by_node = (found[4, name]["sent"] for name in ("ep4", "ep4-nodes2"))
    assert by_node["rows_across"] < 0.85 * flat["rows_across"]


def test_every_rank_holds_the_planned_bytes(found: Found) -> None:
    for (ranks, layout), values in found.items():
        planned = comparison.planned_memory(ranks, layout)
        for here in values["bytes"]:
            assert planned == {name: here[name] for name in planned}


def test_the_table_says_so(found: Found) -> None:
    """All but the machine; a tie within rounding may move a pick elsewhere."""
    made = comparison.document("a machine", found).splitlines()
    kept = comparison.TABLE.read_text().splitlines()
    assert len(made) == len(kept)
    for new, old in zip(made, kept, strict=True):
        if not old.startswith("Made by"):
            assert NUMBER.sub("#", new) == NUMBER.sub("#", old)
            numbers = (
                [float(n.replace(",", "")) for n in NUMBER.findall(line)]
                for line in (new, old)
            )
            assert next(numbers) == pytest.approx(next(numbers), rel=0.02)
