"""What the check of an exercise says when an answer is wrong.

A check names the likely mistake instead of printing two tensors, and goes
from the shape over single mechanisms to the full comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from r1lite.errors import R1Error


class Mistake(R1Error):
    """An answer is wrong; the message says what was probably done."""


def given(*answers: object) -> None:
    """An answer that is still None is not attempted: the exercise stays TODO."""
    if any(answer is None for answer in answers):
        raise NotImplementedError


def expect(condition: Any, message: str) -> None:
    """Raise Mistake(message) unless `condition` holds."""
    if not bool(condition):
        raise Mistake(message)


def shape(found: Any, wanted: Sequence[int], name: str) -> None:
    """`found` must be a tensor of shape `wanted`."""
    if not isinstance(found, torch.Tensor):
        kind = "nothing (is a `return` missing?)" if found is None else type(found)
        raise Mistake(f"{name}: a tensor of shape {tuple(wanted)} is asked, not {kind}")
    expect(
        tuple(found.shape) == tuple(wanted),
        f"{name}: the shape is {tuple(found.shape)}, {tuple(wanted)} is asked",
    )


def close(found: Any, wanted: Any, message: str, atol: float = 1e-5) -> None:
    """Two tensors or numbers within `atol` of each other; NaN equals nothing."""
    a = torch.as_tensor(found).detach().double()
    b = torch.as_tensor(wanted).detach().double()
    if a.shape != b.shape:
        raise Mistake(f"{message} (shape {tuple(a.shape)}, not {tuple(b.shape)})")
    gap = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities are equal
    if gap.numel() and not bool((gap <= atol).all()):
        worst = int(gap.nan_to_num(nan=torch.inf).argmax())
        one, two = a.flatten()[worst], b.flatten()[worst]
        raise Mistake(f"{message} (found {one:.5g}, expected {two:.5g})")
