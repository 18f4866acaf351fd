"""Hot operations: where a model spends its time, and kernels may stand in.

No chapter imports a later one. An operation that chapter 11 knows how to compute
faster is marked `@hot` instead. On a CPU it computes what stands below the mark; on
a GPU, or where R1LITE_KERNELS is set when Python starts, it asks chapter 11 first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

import r1lite

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Chapter 11 then decides on a CPU, too, and refuses a choice it does not know.
by_hand = "R1LITE_KERNELS" in os.environ


def hot(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Marks an operation that a kernel may compute instead.

    `operation` takes a tensor by position, which says on what device it is.
    """

    @wraps(operation)
    def either(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if by_hand or any(isinstance(a, Tensor) and a.is_cuda for a in args):
            result: Result = _faster()(operation, *args, **kwargs)
            return result
        return operation(*args, **kwargs)

    return either


@cache
def _faster() -> Callable[..., Any]:
    """What the root of the package names: the one place that knows every chapter."""
    module, _, name = r1lite._FASTER.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
