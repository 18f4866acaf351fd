"""An endless mixture: rows by their number, from feeds that nobody reads whole.

Rows are made in blocks. A block takes from each feed its share of the tokens,
shuffles the pieces and cuts them into rows. Where every feed stood before a block
is written down, so a run that was killed goes on with the very next token; without
that file it would read again from the start and find the same.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from r1lite.data.corpus import hash_place, size, split
from r1lite.data.feeds import Feed
from r1lite.data.fim import fill_in_the_middle
from r1lite.data.packing import Rows
from r1lite.data.stream import Place
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

CHUNK = 64  # documents encoded at once


@dataclass(frozen=True)
class Cursor:
    """Where a feed stands: the next document's place, and how many of its tokens
    (begin and end included) are used; and what was taken so far."""

    epoch: int = 0
    number: int = 0
    used: int = 0
    tokens: int = 0
    bytes: float = 0.0
    documents: int = 0


class StreamedRows:
    """Rows of `seq_len + 1` tokens from `feeds`, any at any time, no end.

    Every rank makes them all, as `TextStream` reads all; it trains on its own.

    Args:
        index: file that remembers the cursors of every block; None for no file.
        writes: does this process write it? One of several ranks does.
        fim: domain = share of its documents that are reordered.
        block: rows made, and so mixed, together.

    Raises:
        R1Error: a share too small to give a block two tokens.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        tokenizer: R1Tokenizer,
        seq_len: int,
        seed: int,
        index: Path | None = None,
        writes: bool = True,
        fim: dict[str, float] | None = None,
        block: int = 256,
    ) -> None:
        self.width, self.seed, self.block = seq_len + 1, seed, block
        self._feeds, self._tokenizer = list(feeds), tokenizer
        self._index, self._writes, self._fim = index, writes, fim or {}
        for f in self._feeds:  # rounding could take more than there is
            if f.share * self.width * block < 2:
                raise R1Error(
                    f"data.mixture.{f.domain}: {f.name} gets less than two of "
                    f"{self.width * block} tokens; raise its share or leave it out"
                )
        known = _read_index(index, len(self._feeds))
        self._starts = [[Cursor() for _ in self._feeds], *known]
        self._appends = False
        self._kept: dict[int, list[np.ndarray]] = {}
        self._queues: list[_Queue] = []
        self._at = 0  # the block that the queues stand before, once there are any

    def rows(self, first: int, count: int) -> Rows:
        """Rows `first` to `first + count`: (count, seq_len + 1) each."""
        found = []
        for row in range(first, first + count):
            block, at = divmod(row, self.block)
            found.append([x[at] for x in self._made(block)])
        return Rows(*(torch.from_numpy(np.stack(x)) for x in zip(*found, strict=True)))

    def taken(self) -> list[tuple[Feed, Cursor]]:
        """What each feed has given to the last block ever made.

        That a run made it before it was killed counts, too.
        """
        return list(zip(self._feeds, self._starts[-1], strict=True))

    def _made(self, block: int) -> list[np.ndarray]:
        if block not in self._kept:
            first = min(block, len(self._starts) - 1)  # without a file, from 0
            made = [self._make(b) for b in range(first, block + 1)][-1]
            self._kept = {b: x for b, x in self._kept.items() if b == block - 1}
            self._kept[block] = made
        return self._kept[block]

    def _make(self, block: int) -> list[np.ndarray]:
        """Ids, document ids and positions, (rows, width) each."""
        if block != self._at or not self._queues:
            self._queues = [
                _Queue(f, c, self._tokenizer, self._fim.get(f.domain, 0.0), self.seed)
                for f, c in zip(self._feeds, self._starts[block], strict=True)
            ]
        # Put back once all have given: one whose reading failed cannot go on.
        queues, self._queues = self._queues, []
        total = self.width * self.block
        shares = {str(i): f.share for i, f in enumerate(self._feeds)}
        until, before = (split(total * b, shares) for b in (block + 1, block))
        pieces: list[np.ndarray] = []
        for queue, end, start in zip(
            queues, until.values(), before.values(), strict=True
        ):
            pieces += queue.take(end - start)
        self._queues, self._at = queues, block + 1
        if len(self._starts) == self._at:
            self._starts.append([q.cursor for q in queues])
            self._remember()
        rng = random.Random(f"stream/{self.seed}/{block}")
        keys = [rng.random() for _ in pieces]
        pieces = [pieces[i] for i in sorted(range(len(keys)), key=keys.__getitem__)]
        lengths = [len(p) for p in pieces]
        shape = self.block, self.width
        column = np.broadcast_to(np.arange(self.width), shape)
        place = np.concatenate([np.arange(n) for n in lengths]).reshape(shape)
        ids = np.concatenate(pieces).reshape(shape)
        documents = np.repeat(np.arange(len(pieces)), lengths).reshape(shape)
        # As in PackedRows: counted from where the row shows the document.
        return [ids, documents, np.minimum(place, column)]

    def _remember(self) -> None:
        """Append the cursors; the first time anew, a kill may have cut a line."""
        if self._index is None or not self._writes:
            return
        self._index.parent.mkdir(parents=True, exist_ok=True)
        new = self._starts[-1:] if self._appends else self._starts[1:]
        lines = [json.dumps([asdict(c) for c in cs]) + "\n" for cs in new]
        if self._appends:
            with self._index.open("a") as f:
                f.writelines(lines)
        else:
            partial = self._index.with_suffix(".partial")
            partial.write_text("".join(lines))
            partial.replace(self._index)
        self._appends = True


class _Queue:
    """A feed's documents as tokens, and the cursor behind what was taken."""

    def __init__(
        self, feed: Feed, cursor: Cursor, tokenizer: R1Tokenizer, fim: float, seed: int
    ) -> None:
        self.cursor = cursor
        self._feed, self._tokenizer, self._fim, self._seed = feed, tokenizer, fim, seed
        self._source = feed.documents(Place(cursor.epoch, cursor.number))
        self._ready: deque[tuple[Place, Place, np.ndarray, int]] = deque()

    def take(self, tokens: int) -> list[np.ndarray]:
        """The next `tokens` tokens, a piece for each document they are of."""
        pieces: list[np.ndarray] = []
        while tokens > 0:
            if not self._ready:
                self._fill(4 * tokens)
            before, after, ids, n_bytes = self._ready[0]
            c, piece = self.cursor, ids[self.cursor.used :][:tokens]
            done = c.used + len(piece) == len(ids)
            place, used = (after, 0) if done else (before, c.used + len(piece))
            self.cursor = Cursor(
                *place,
                used,
                c.tokens + len(piece),
                c.bytes + n_bytes * len(piece) / len(ids),
                c.documents + (c.used == 0),
            )
            if done:
                self._ready.popleft()
            pieces.append(piece)
            tokens -= len(piece)
        return pieces

    def _fill(self, enough: int) -> None:
        """Encode a few documents, about `enough` bytes."""
        read: list[tuple[Place, Place, str]] = []
        for document in self._source:
            read.append(document)
            enough -= size(document[2])
            if enough <= 0 or len(read) == CHUNK:
                break
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        encoded = self._tokenizer.encode_batch([text for _, _, text in read])
        for (before, after, text), ids in zip(read, encoded, strict=True):
            if self._fim:
                dice = f"{self._seed}/{self._feed.name}/{tuple(before)}"
                seed = round(hash_place(dice) * 2**48)
                (ids,) = fill_in_the_middle(self._tokenizer, [ids], self._fim, seed)
            whole = np.array([bos, *ids, eos], dtype=np.int64)
            self._ready.append((before, after, whole, size(text)))


def _read_index(path: Path | None, feeds: int) -> list[list[Cursor]]:
    """The cursors behind each block; a line that a kill cut in two ends them."""
    found: list[list[Cursor]] = []
    if path is None or not path.exists():
        return found
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        cursors = [Cursor(**c) for c in json.loads(line)]
        if len(cursors) != feeds:
            break
        found.append(cursors)
    return found
