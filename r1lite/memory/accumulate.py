"""Gradient accumulation that does not depend on how a batch is split.

Every term of the loss is a mean over units of its own: trained tokens, tokens
two steps on, sequences. A micro-batch counts for as many units as it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

from torch import Tensor

from r1lite.errors import R1Error

Batch = TypeVar("Batch")
Terms = Mapping[str, tuple[Tensor, int]]


def accumulate(
    micro_batches: Iterable[Batch],
    terms: Callable[[Batch], Terms],
    totals: Mapping[str, int],
) -> dict[str, float]:
    """Add the gradient of one optimizer step, one micro-batch at a time.

    Args:
        micro_batches: any split of the step's batch.
        terms: runs the model; gives, by name, the mean over a micro-batch's
            units (with its weight in the loss) and how many units those are.
        totals: the units of the whole step, by name, counted before the first
            forward. With several ranks: of all ranks; then sum the gradients.

    Returns:
        each term's mean over the step, as one large batch would give it.

    Raises:
        R1Error: the micro-batches hold more units than their total.
    """
    means = dict.fromkeys(totals, 0.0)
    seen = dict.fromkeys(totals, 0)
    for batch in micro_batches:
        parts = []
        for name, (mean, units) in terms(batch).items():
            seen[name] += units
            if seen[name] > totals[name]:
                raise R1Error(
                    f"totals.{name}: {totals[name]}, but the micro-batches hold "
                    "more; count the units of the whole step"
                )
            weight = units / totals[name] if units else 0.0
            # The mean over nothing may be NaN. If it is a number, it takes part
            # with weight 0: other ranks may wait in its backward pass.
            if units or bool(mean.isfinite()):
                parts.append(mean * weight)
                means[name] += float(parts[-1].detach())
        loss = sum(parts)
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
    return means


def windows(micro_batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` micro-batches, one optimizer step each; the last may be short.

    Raises:
        R1Error: size is below 1.
    """
    if size < 1:
        raise R1Error(f"size: {size} micro-batches make no step; give at least 1")
    rest = iter(micro_batches)
    while window := list(islice(rest, size)):
        yield window
