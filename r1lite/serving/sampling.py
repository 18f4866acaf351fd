"""One token for every row, each row with its own settings and its own chance.

The random number of a row is a function of its seed, its sample and its place in
the text. Nothing is drawn from a shared stream, so company changes nothing, and a
row that is computed again gets the same tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from r1lite.generation import LEAST
from r1lite.serving.types import SamplingParams

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit moves half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(
    seeds: Sequence[int], samples: Sequence[int], places: Sequence[int]
) -> Tensor:
    """Numbers in [0, 1), one a row, float32: (rows,).

    A counter-based generator: SplitMix64 (Steele, Lea and Flood, 2014) at
    place `places[i]` of the stream that (seeds[i], samples[i]) names.
    """
    with np.errstate(over="ignore"):
        stream = np.array([s % 2**64 for s in seeds], dtype=np.uint64)
        for step in (samples, places):
            stream = _scramble(
                stream + (np.array(step, dtype=np.uint64) + np.uint64(1)) * GAMMA
            )
    return torch.from_numpy((stream >> np.uint64(40)).astype(np.float32) * 2.0**-24)


class Chooser:
    """The settings of a step's rows as columns, (rows, 1) each."""

    def __init__(self, rows: Sequence[SamplingParams], device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        self.greedy = torch.tensor([p.temperature == 0 for p in rows], device=device)
        self.all_greedy = all(p.temperature == 0 for p in rows)
        self.heat = column(
            [max(p.temperature, LEAST) if p.temperature else 1.0 for p in rows]
        )
        self.filtered = [
            i
            for i, p in enumerate(rows)
            if p.temperature and (p.top_k or p.top_p < 1 or p.min_p)
        ]
        cut = [rows[i] for i in self.filtered]
        self.top_k = column([p.top_k or 2**31 for p in cut]).long()
        self.top_p = column([max(p.top_p, LEAST) for p in cut])
        self.min_p = column([p.min_p for p in cut])

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' tokens (rows,) and log-probabilities (rows, vocab).

        logits: (rows, vocab); uniform: (rows,). The log-probabilities are those
        of the temperature's distribution, before filters.
        """
        logp = (logits.float() / self.heat).log_softmax(-1)
        best = logits.argmax(-1)
        if self.all_greedy:
            return best, logp
        kept = logp.exp()
        if self.filtered:
            kept[self.filtered] = self._filter(logp[self.filtered]).softmax(-1)
        total = kept.cumsum(-1)
        # Scaling by the last sum keeps rounding from pointing past the last token.
        target = uniform[:, None] * total[:, -1:]
        drawn = torch.searchsorted(total, target, right=True)[:, 0]
        drawn = drawn.clamp_max(logits.shape[-1] - 1)
        return torch.where(self.greedy, best, drawn), logp

    def _filter(self, logp: Tensor) -> Tensor:
        """What top-k, top-p and min-p cut is -inf: `filter_logits` by row."""
        ordered, index = logp.sort(dim=-1, descending=True, stable=True)
        k = self.top_k.clamp_max(logp.shape[-1])
        least = ordered.gather(-1, k - 1)
        ordered = ordered.masked_fill(ordered < least, -torch.inf)
        p = ordered.softmax(-1)
        # The token that crosses p stays. A row without top-p has 1.0, which the
        # sum may pass by rounding: there nothing is cut.
        cut = (p.cumsum(-1) - p >= self.top_p) & (self.top_p < 1)
        ordered = ordered.masked_fill(cut, -torch.inf)
        p = ordered.softmax(-1)
        ordered = ordered.masked_fill(p < self.min_p * p[:, :1], -torch.inf)
        return torch.empty_like(logp).scatter_(-1, index, ordered)
