"""Packing: documents into rows of one length, so that no compute is padding.

Every row knows which document each token belongs to, so attention can keep
documents apart. What a step sees is a function of the seed and the step: to
resume a run is to ask for the next step. Source: DeepSeek-V3, arXiv
2412.19437, section 4.1 (document packing).
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

PADDING = -1  # document id of padding: equal to no document's


@dataclass(frozen=True)
class Rows:
    """Packed rows, all tensors (rows, tokens) int64.

    document_ids: tokens with equal ids belong together, PADDING to none.
    positions: place in the document, counted from where the row shows it.
    """

    ids: Tensor
    document_ids: Tensor
    positions: Tensor


@dataclass(frozen=True)
class MaskedRows(Rows):
    """Packed examples. `mask` (rows, tokens) bool: the token is a target."""

    mask: Tensor


class RowSource(Protocol):
    """What a pretraining stage reads: rows by their number, any at any time."""

    def rows(self, first: int, count: int) -> Rows: ...


class PackedRows:
    """An endless stream of documents, cut into rows of `seq_len + 1` tokens.

    Each document becomes bos + tokens + eos. An epoch shows each token once,
    in an order of documents of its own; the next epoch follows without a gap,
    so a row may show the end of one and the start of the other.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        tokenizer: R1Tokenizer,
        seq_len: int,
        seed: int,
    ) -> None:
        if not documents:
            raise R1Error("data: there is no document to train on; add a source")
        self.width, self.seed = seq_len + 1, seed
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        whole = [np.array([bos, *d, eos], dtype=np.int32) for d in documents]
        self._tokens = np.concatenate(whole)
        self._lengths = np.array([len(d) for d in whole])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._epoch = lru_cache(maxsize=2)(self._order_of_epoch)

    @property
    def tokens(self) -> int:
        """Tokens in an epoch, begin and end tokens included."""
        return len(self._tokens)

    def batch(self, step: int, batch_size: int) -> Rows:
        """The `batch_size` rows of `step` (0-based), any step at any time."""
        return self.rows(step * batch_size, batch_size)

    def rows(self, first: int, count: int) -> Rows:
        """Rows `first` to `first + count` of the stream, for batches that grow."""
        rows = [self.row(first + i) for i in range(count)]
        return Rows(*(torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True)))

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, document ids and positions of row `index` of the stream."""
        ids = np.empty(self.width, dtype=np.int64)
        documents, positions = np.empty_like(ids), np.empty_like(ids)
        filled = 0
        while filled < self.width:
            epoch, at = divmod(index * self.width + filled, self.tokens)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, at, side="right"))
            document = order[place]
            length = min(int(ends[place]) - at, self.width - filled)
            start = int(self._starts[document] + self._lengths[document])
            start -= int(ends[place]) - at
            here = slice(filled, filled + length)
            ids[here] = self._tokens[start : start + length]
            documents[here] = epoch * len(order) + place
            positions[here] = np.arange(length)
            filled += length
        return ids, documents, positions

    def _order_of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents in the epoch's order, and where each ends in its stream."""
        # Python promises `random()` the same for a seed in every version,
        # which neither it nor NumPy does for their shuffles.
        rng = random.Random(f"packing/{self.seed}/{epoch}")
        keys = [rng.random() for _ in self._lengths]
        order = np.argsort(keys, kind="stable")
        return order, np.cumsum(self._lengths[order])


class MaskedTokens(Protocol):
    """What `pack_examples` packs: token ids and which of them are targets."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def mask(self) -> list[bool]: ...


def pack_examples(
    examples: Sequence[MaskedTokens], seq_len: int, seed: int
) -> MaskedRows:
    """Put whole examples into few rows of at most `seq_len + 1` tokens.

    Best fit, longest first: each example goes where it leaves least room. No
    example is split. Rows are as wide as the fullest and come in an order that
    `seed` chooses. Padding has id R1Tokenizer.pad_id, document id PADDING and
    mask False; so has the first token of an example, which nothing predicts.

    Raises:
        R1Error: no example, one that is longer than a row, or a bad mask.
    """
    if not examples:
        raise R1Error("examples: there is nothing to pack; give at least one example")
    for i, e in enumerate(examples):
        _check(i, e, seq_len + 1)
    rows = _best_fit([len(e.ids) for e in examples], seq_len + 1)
    random.Random(f"examples/{seed}").shuffle(rows)
    shape = len(rows), max(sum(len(examples[i].ids) for i in r) for r in rows)
    ids = torch.full(shape, R1Tokenizer.pad_id)
    documents = torch.full(shape, PADDING)
    positions = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, members in enumerate(rows):
        at = 0
        for i in members:
            e = examples[i]
            here = slice(at, at + len(e.ids))
            ids[row, here] = torch.tensor(e.ids)
            documents[row, here] = i
            positions[row, here] = torch.arange(len(e.ids))
            mask[row, here] = torch.tensor([False, *e.mask[1:]])
            at += len(e.ids)
    return MaskedRows(ids, documents, positions, mask)


def _check(index: int, example: MaskedTokens, width: int) -> None:
    length = len(example.ids)
    if length > width:
        raise R1Error(
            f"examples.{index}: has {length} tokens, a row holds {width}; "
            f"raise seq_len to at least {length - 1} or leave it out"
        )
    if not length or length != len(example.mask):
        raise R1Error(
            f"examples.{index}: has {length} ids and {len(example.mask)} mask values; "
            "give one mask value for each id, and at least one id"
        )


def _best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's sum at most `width`."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect_left(free, (lengths[i], -1))
        if found == len(free):
            room, row = width, len(rows)
            rows.append([])
        else:
            room, row = free.pop(found)
        rows[row].append(i)
        insort(free, (room - lengths[i], row))
    return rows
