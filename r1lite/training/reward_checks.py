"""What to ask of a reward model before anything is trained against it.

How often is it right on comparisons that it has not seen, and how sure is that
number; does 80 % sure mean right four times in five; and does it only count tokens?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.training.preferences import Pair


@dataclass(frozen=True)
class Share:
    """A share of n, with Wilson's 95 % interval."""

    value: float
    n: int
    low: float
    high: float


def share(right: Tensor, z: float = 1.96) -> Share:
    """The share of True in `right` (n,) and how far chance may have moved it.

    Wilson's interval stays inside 0 and 1 and has a width at 100 % right, where
    the usual p +- z * sqrt(p (1 - p) / n) claims certainty.
    """
    n = right.numel()
    if n == 0:
        raise R1Error("pairs: there are none to judge by; give at least one")
    p = float(right.double().mean())
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, n, max(0.0, centre - half), min(1.0, centre + half))


def pair_accuracy(rewards: Tensor) -> Share:
    """How often the chosen reply has the higher reward; rewards (pairs, 2).

    A tie is not right: a model that says one number for all scores 0 here.
    """
    return share(rewards[:, 0] > rewards[:, 1])


@dataclass(frozen=True)
class Reliability:
    """Pairs in bins of equal width by how sure the model is, empty ones left out.

    `sure` and `right` are a bin's mean probability of the preferred reply and its
    share of right preferences. `error` is the expected calibration error: the mean
    distance of the two, weighted by `count`.
    """

    sure: list[float]
    right: list[float]
    count: list[int]
    error: float


def reliability(rewards: Tensor, bins: int = 10) -> Reliability:
    """Is the model right as often as it says? rewards: (pairs, 2).

    Its probability of the reply it prefers is sigmoid of their distance, so from 1/2
    to 1 (Guo et al., arXiv 1706.04599, section 2, for the error).
    """
    gap = (rewards[:, 0] - rewards[:, 1]).double()
    sure, right = torch.sigmoid(gap.abs()), (gap > 0).double()
    place = ((sure - 0.5) * 2 * bins).long().clamp_max(bins - 1)
    inside = [place == b for b in range(bins) if bool((place == b).any())]
    means = [float(sure[i].mean()) for i in inside]
    rights = [float(right[i].mean()) for i in inside]
    counts = [int(i.sum()) for i in inside]
    off = sum(
        n * abs(a - b) for n, a, b in zip(counts, means, rights, strict=True)
    ) / len(gap)
    return Reliability(means, rights, counts, off)


@dataclass(frozen=True)
class LengthBias:
    """How much of a reward model is a ruler.

    correlation: of reward and length over all replies, Pearson.
    longer: how often it prefers the longer reply, where lengths differ.
    better_is_longer: how often the better reply is the longer one there.
    same_length: its accuracy where lengths are equal; None without such pairs.
    """

    correlation: float
    longer: Share | None
    better_is_longer: Share | None
    same_length: Share | None


def length_bias(rewards: Tensor, pairs: Sequence[Pair]) -> LengthBias:
    """Compare rewards (pairs, 2) with the replies' lengths in tokens."""
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
    both = torch.stack([rewards.double().flatten(), lengths.double().flatten()])
    prefers = rewards[:, 0] > rewards[:, 1]
    longer = lengths[:, 0] > lengths[:, 1]
    differ, equal = lengths[:, 0] != lengths[:, 1], lengths[:, 0] == lengths[:, 1]
    return LengthBias(
        float(torch.corrcoef(both)[0, 1]),
        share((prefers == longer)[differ]) if bool(differ.any()) else None,
        share(longer[differ]) if bool(differ.any()) else None,
        share(prefers[equal]) if bool(equal.any()) else None,
    )
