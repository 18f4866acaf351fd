"""Kernel or reference: by the device, or by hand with R1LITE_KERNELS.

Triton is optional. Where it is missing, and on a CPU, the references compute. With
TRITON_INTERPRET=1, set before Python starts, the kernels run on a CPU, slowly and
one program after the other: that is how their numbers are proven without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1lite.errors import R1Error

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU build of torch brings none
    triton = tl = None

CHOICES = ("auto", "off", "reference", "triton")


class Tile(NamedTuple):
    """What one program works on: rows, columns, its warps, and tiles in flight."""

    m: int
    n: int
    warps: int
    stages: int = 2


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`, whose launches go to the GPU of their first argument.

    Triton's own go to the current one, which need not hold the tensors. Without
    Triton the function stays what it is, never called.
    """
    if triton is None:
        return function
    kernel = triton.jit(function)
    launch = kernel.run

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(x):
            return launch(x, *args, **kwargs)

    kernel.run = run
    return kernel


def use_triton(x: Tensor) -> bool:
    """Does a kernel compute what comes of `x`?

    R1LITE_KERNELS: "auto" (the default) says yes on a GPU; "triton" insists;
    "off" and "reference" say no.

    Raises:
        R1Error: an unknown choice, or "triton" where it cannot run.
    """
    choice = os.environ.get("R1LITE_KERNELS", "auto")
    if choice not in CHOICES:
        raise R1Error(
            f"R1LITE_KERNELS: {choice!r} is unknown; set it to {', '.join(CHOICES)}"
        )
    runs = triton is not None and (x.is_cuda or interpreted())
    if choice == "triton" and not runs:
        raise R1Error(
            "R1LITE_KERNELS: triton needs the package triton and a GPU, or "
            "TRITON_INTERPRET=1 from the start; set it to auto"
        )
    return runs and (choice == "triton" or (choice == "auto" and x.is_cuda))


def interpreted() -> bool:
    """Do kernels run in Triton's interpreter?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


def chip_of(x: Tensor) -> str:
    """The chip whose tiles fit x's device: sm_80, sm_90, sm_100 or gfx942.

    sm_80 stands for every unknown one: its tiles fit in the 99 KiB of shared memory
    that NVIDIA's smaller chips have (sm_86, sm_89, sm_120).
    """
    if not x.is_cuda:
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(x.device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def tile_for(tiles: dict[str, Tile], x: Tensor) -> Tile:
    """The tile of x's chip, for float32 half as high and half as wide, at least 16.

    Twice as large, V3's widths would fit neither in the shared memory of the smaller
    chips nor in the registers.
    """
    tile = tiles[chip_of(x)]
    if x.dtype != torch.float32:
        return tile
    return tile._replace(m=max(16, tile.m // 2), n=max(16, tile.n // 2))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`: what `tl.arange` can count."""
    return 1 << max(0, n - 1).bit_length()
