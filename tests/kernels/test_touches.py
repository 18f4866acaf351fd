"""Chapter 11's record of addresses: what kernels touch, and what it calls a fault."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from r1lite.kernels.choose import jit, tl

FILE = Path(__file__).parents[2] / "chapters" / "scripts" / "touches.py"


@pytest.fixture(scope="module")
def touches() -> ModuleType:
    """The chapters' helper; a notebook finds it beside itself."""
    spec = spec_from_file_location("chapter_touches", FILE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@jit
def _copy(x, y, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)


@jit
def _count(x, counts, ATOMIC: tl.constexpr):
    here = counts + tl.load(x + tl.program_id(0))
    if ATOMIC:
        tl.atomic_add(here, 1)
    else:
        tl.store(here, tl.load(here) + 1)


def test_masked_addresses_are_written_down_in_order(touches: ModuleType) -> None:
    x, y = torch.arange(6.0), torch.zeros(6)
    with touches.record(x=x, y=y) as found:
        _copy[(2,)](x, y, 6, 4)
    assert [(t.program[0], t.kind, t.tensor, t.at.tolist()) for t in found] == [
        (0, "load", "x", [0, 1, 2, 3]),
        (0, "store", "y", [0, 1, 2, 3]),
        (1, "load", "x", [4, 5]),
        (1, "store", "y", [4, 5]),
    ]
    owner = touches.owners(found, "y", (2, 3))
    assert owner.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert touches.faults(found) == []
    assert torch.equal(x, y)


def test_a_view_counts_from_its_own_first_element(touches: ModuleType) -> None:
    room = torch.zeros(2, 8)
    with touches.record(x=room[1, 2:6], y=room[0]) as found:
        _copy[(1,)](room[1, 2:6], room[0], 4, 4)
    assert [t.at.tolist() for t in found] == [[0, 1, 2, 3]] * 2


def test_an_access_outside_is_a_fault(touches: ModuleType) -> None:
    room = torch.zeros(2, 8)
    with touches.record(x=room[0, :3], y=room[1, :4]) as found:
        _copy[(1,)](room[0], room[1], 4, 4)
    assert touches.faults(found) == ["program 0: 1 loads outside every tensor"]


@pytest.mark.parametrize(("atomic", "said"), [(False, ["a race for c[1]"]), (True, [])])
def test_a_race_is_a_fault_though_the_result_is_right(
    touches: ModuleType, atomic: bool, said: list[str]
) -> None:
    x, counts = torch.tensor([1, 0, 1]), torch.zeros(2, dtype=torch.int64)
    with touches.record(x=x, c=counts) as found:
        _count[(3,)](x, counts, atomic)
    assert touches.faults(found) == said
    assert counts.tolist() == [1, 2]


def test_the_interpreter_is_as_it_was(touches: ModuleType) -> None:
    with pytest.raises(ValueError, match="stop"), touches.record():
        raise ValueError("stop")
    assert not any(name.startswith("create_") for name in vars(interpreter_builder))
