"""Hot operations: where a model spends its time, and kernels may stand in.

No chapter imports a later one. An operation that chapter 11 knows how to compute
faster is marked `@hot` instead. On a CPU it computes what stands below the mark; on
a GPU, or where R1LITE_KERNELS is set when Python starts, it asks chapter 11 first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

import r1lite

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Chapter 11 then decides on a CPU, too, and refuses a choice it does not know.
by_hand = "R1LITE_KERNELS" in os.environ
_compute: Callable[..., Any] | None = None


def hot(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Marks an operation that a kernel may compute instead.

    `operation` takes a tensor by position, which says on what device it is.
    """

    name = operation.__qualname__

    @wraps(operation)
    def either(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if by_hand or any(isinstance(a, Tensor) and a.is_cuda for a in args):
            result: Result = (_compute or _load())(name, operation, *args, **kwargs)
            return result
        return operation(*args, **kwargs)

    return either


def prepare_kernels() -> None:
    """Load them if there may be a use: torch.compile cannot trace an import."""
    if by_hand or torch.cuda.is_available():
        _load()


def _load() -> Callable[..., Any]:
    """What the root of the package names: the one place that knows every chapter."""
    global _compute
    module, _, name = r1lite._FASTER.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    _compute = found
    return found
