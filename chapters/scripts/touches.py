"""Writes down every address that interpreted Triton kernels touch.

Triton's interpreter runs the programs of a kernel one after the other, in
this process. What is recorded are the real pointers of its loads, stores and
atomic operations, after the mask; nothing is computed a second time. The
hooks are three methods of the interpreter, private to Triton, so that this
file belongs to the version of Triton that requirements.lock names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder as interpreter

OUTSIDE = "outside"


@dataclass(frozen=True)
class Touch:
    """One load, store or atomic operation of one program on one tensor.

    `at`: the elements that the mask let through, counted from the tensor's
    first one. `tensor` is OUTSIDE for addresses that belong to no tensor that
    was named; `at` then holds addresses.
    """

    program: tuple[int, int, int]
    kind: str
    tensor: str
    at: np.ndarray


@contextmanager
def record(**tensors: Tensor) -> Iterator[list[Touch]]:
    """Fills the list it gives while kernels run inside."""
    found: list[Touch] = []

    def note(kind: str, pointers: Any, mask: Any) -> None:
        everything = np.ones(pointers.data.shape, bool)
        allowed = everything if mask is None else mask.data.astype(bool)
        allowed = np.broadcast_to(allowed, everything.shape)
        left = pointers.data[allowed].astype(np.int64)
        program = tuple(int(i) for i in interpreter.grid_idx)
        for name, x in tensors.items():
            first = x.data_ptr()
            ahead = left - first
            inside = (ahead >= 0) & (ahead < _extent(x))
            if inside.any():
                at = ahead[inside] // x.element_size()
                found.append(Touch(program, kind, name, at))
            left = left[~inside]
        if left.size:
            found.append(Touch(program, kind, OUTSIDE, left))

    load = interpreter.create_masked_load
    store = interpreter.create_masked_store
    atomic = interpreter.create_atomic_rmw

    def noted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", pointers, mask)
        return load(pointers, mask, *rest)

    def noted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask)
        return store(pointers, value, mask, *rest)

    def noted_atomic(op: Any, at: Any, value: Any, mask: Any, *r: Any) -> Any:
        note("atomic", at, mask)
        return atomic(op, at, value, mask, *r)

    interpreter.create_masked_load = noted_load
    interpreter.create_masked_store = noted_store
    interpreter.create_atomic_rmw = noted_atomic
    try:
        yield found
    finally:
        del interpreter.create_masked_load
        del interpreter.create_masked_store
        del interpreter.create_atomic_rmw


def _extent(x: Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if not x.numel():
        return 0
    sizes = zip(x.shape, x.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes)
    return (last + 1) * x.element_size()


def owners(
    touches: list[Touch], tensor: str, shape: tuple[int, ...], axis: int = 0
) -> np.ndarray:
    """Which program touched each element last, by `axis` of the grid; or NaN.

    `shape`: of the tensor, whose elements lie one behind the other.
    """
    owner = np.full(shape, np.nan)
    for touch in touches:
        if touch.tensor == tensor:
            owner.flat[touch.at] = touch.program[axis]
    return owner


def faults(touches: list[Touch]) -> list[str]:
    """What is wrong whatever the order: accesses outside, and races.

    Two programs race for an element if one of them stores it plainly: on a
    GPU nobody knows who is first.
    """
    found, users = [], defaultdict[tuple[str, int], set[tuple[Any, str]]](set)
    for touch in touches:
        if touch.tensor == OUTSIDE:
            found.append(
                f"program {touch.program[0]}: {touch.at.size} {touch.kind}s "
                "outside every tensor"
            )
            continue
        for element in touch.at.tolist():
            users[touch.tensor, element].add((touch.program, touch.kind))
    raced = defaultdict[str, list[int]](list)
    for (tensor, element), uses in sorted(users.items()):
        programs = {program for program, _ in uses}
        if len(programs) > 1 and "store" in {kind for _, kind in uses}:
            raced[tensor].append(element)
    found += [f"a race for {name}{places}" for name, places in raced.items()]
    return found
