"""`agree(slow, fast, x)`: the loop you can read and the package say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def agree(
    slow: Callable[..., Any],
    fast: Callable[..., Any],
    *args: Any,
    tol: float = 1e-6,
    compare: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> None:
    """Call both on the same arguments and print one line, or raise.

    Both start from the same state of PyTorch's random generator. A result may
    be a tensor, an array, a number, or tuples, lists, dicts and dataclasses of
    those; every number in it is compared.

    Args:
        slow: the readable version, usually written in the notebook.
        fast: the package's version.
        tol: the largest absolute difference allowed.
        compare: picks the part of each result to compare, e.g. `lambda r: r[0]`.

    Raises:
        AssertionError: the results differ in form, size or value; the message
            names the place, the sizes and the two values.
    """
    with torch.random.fork_rng(devices=[]):
        expected = slow(*args, **kwargs)
    with torch.random.fork_rng(devices=[]):
        found = fast(*args, **kwargs)
    if compare is not None:
        expected, found = compare(expected), compare(found)
    worst, place = _largest_difference(expected, found)
    if not worst < tol:  # also when it is NaN
        raise AssertionError(
            f"max |difference| = {worst:.3g}, allowed is {tol:g}; {place}"
        )
    print(f"max |difference| < {tol:g}: True")


def _largest_difference(expected: Any, found: Any) -> tuple[float, str]:
    """The largest |expected - found|, NaN included, and where it is.

    Raises:
        AssertionError: the two have different parts or sizes, or no numbers.
    """
    left, right = dict(_leaves(expected)), dict(_leaves(found))
    if left.keys() != right.keys():
        raise AssertionError(
            f"the results have different parts: {_names(left)} against {_names(right)}"
        )
    worst, place = -1.0, ""
    for name, a in left.items():
        b = right[name]
        if a.shape != b.shape:
            raise AssertionError(
                f"different sizes{_at(name)}: {tuple(a.shape)} against {tuple(b.shape)}"
            )
        if a.numel() == 0:
            continue
        gap = torch.where(a == b, 0.0, (a - b).abs()).flatten()
        i = int(gap.isnan().nonzero()[0]) if gap.isnan().any() else int(gap.argmax())
        if gap[i].isnan() or gap[i] > worst:
            worst = float(gap[i])
            where = [int(k) for k in np.unravel_index(i, tuple(a.shape))]
            place = (
                f"size {tuple(a.shape)}{_at(name)}, index {where}: "
                f"{float(a.flatten()[i]):.6g} against {float(b.flatten()[i]):.6g}"
            )
        if gap[i].isnan():
            break
    if not place:
        raise AssertionError("the results hold no numbers, so nothing was compared")
    return worst, place


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of numbers inside `value`, as float64 on the CPU, by name."""
    if isinstance(value, Tensor | np.ndarray | np.generic | bool | int | float):
        tensor = torch.as_tensor(value).detach()
        yield name, tensor.to("cpu", torch.float64)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), f"{name}.{field.name}")
    elif value is not None:
        raise AssertionError(
            f"cannot compare a {type(value).__name__}{_at(name)}; "
            "use compare= to pick tensors or numbers"
        )


def _names(leaves: dict[str, Tensor]) -> str:
    return ", ".join(name or "one value" for name in leaves) or "nothing"


def _at(name: str) -> str:
    return f" at result{name}" if name else ""
