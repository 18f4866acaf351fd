"""Text from Hugging Face datasets, read as it is needed, never all of it.

A stream is addressed by (epoch, number): the same document has the same number
however many ranks read and wherever a run was interrupted. The library's own
shuffle buffer is filled anew after a resume, which loses what it held. Here a
buffer is a block of consecutive documents, and its order a function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from r1lite.errors import R1Error
from r1lite.settings import Section

# What the library calls the formats of local files, by their ending.
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}


class Place(NamedTuple):
    """Where a stream goes on: the next document's epoch and number in it."""

    epoch: int = 0
    number: int = 0


class StreamConfig(Section):
    """A dataset. `path`: a name on the hub, a local file, or a folder of files.

    subset, split: the hub's names for parts of a dataset.
    column: which field holds the text. buffer: documents shuffled together; 1
    keeps the order of the files. weight: its part of its domain's tokens.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    buffer: int = 1000
    weight: float = Field(default=1.0, gt=0)


class TextStream:
    """Documents of a dataset, endlessly, epoch after epoch.

    Rank r of n gets the documents r, r + n, r + 2 n, ... of an epoch's common order,
    so that after k documents each, n ranks have read the first k n of it, whatever n
    is. A rank begins the next epoch once its own part is read. Every rank reads the
    whole stream and keeps its part: simple and exact, and n times the traffic.
    """

    def __init__(
        self, config: StreamConfig, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if not 0 <= rank < ranks:
            raise R1Error(f"stream: rank {rank} of {ranks}; give 0 to {ranks - 1}")
        if config.buffer < 1:
            raise R1Error(f"stream.buffer: {config.buffer} is below 1; give 1 or more")
        self.config, self.seed = config, seed
        self._rank, self._ranks = rank, ranks
        self._data = _open(config)

    def read(self, start: Place = Place()) -> Iterator[tuple[Place, str]]:  # noqa: B008
        """(the place after it, the text) of each of this rank's documents.

        `start` is `Place()` or a place that an earlier reading gave: whoever keeps
        it with a checkpoint goes on with the very next document.

        Raises:
            R1Error: the column is missing, or there is no text at all, or none for
                this rank.
        """
        epoch, first = start
        while True:
            found = own = first > 0
            for number, text in self._epoch(epoch, first):
                if not text.strip():
                    continue
                found = True
                if number % self._ranks == self._rank:
                    own = True
                    yield Place(epoch, number + 1), text
            if not found:
                raise R1Error(
                    f"stream.path: {self.config.path} holds no text; name another"
                )
            if not own:
                raise R1Error(
                    f"stream.path: {self.config.path} holds no text for rank "
                    f"{self._rank} of {self._ranks}; read it with fewer ranks"
                )
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int, first: int) -> Iterator[tuple[int, str]]:
        """Numbers from `first` on with their texts, all ranks' of them."""
        size = self.config.buffer
        block = first // size
        rows = iter(self._data.skip(block * size) if block else self._data)
        while texts := [self._text(row) for row in islice(rows, size)]:
            rng = random.Random(f"stream/{self.seed}/{epoch}/{block}")
            keys = [rng.random() for _ in texts]
            order = sorted(range(len(texts)), key=keys.__getitem__)
            for number, which in enumerate(order, block * size):
                if number >= first:
                    yield number, texts[which]
            block += 1

    def _text(self, row: dict[str, Any]) -> str:
        text = row.get(self.config.column)
        if not isinstance(text, str):
            raise R1Error(
                f"stream.column: {self.config.column!r} holds no text; "
                f"choose one of {', '.join(row)}"
            )
        return text


def _open(config: StreamConfig) -> Any:
    """The library's streaming dataset, local files in order of their names."""
    try:
        import datasets
    except ImportError as e:
        raise R1Error(
            "stream: the package datasets is not installed; run `pip install datasets`"
        ) from e
    path = Path(config.path).expanduser()
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.suffix in FORMATS)
        files = [path] if path.is_file() else files
        kinds = {FORMATS.get(p.suffix) for p in files}
        if len(kinds) != 1 or None in kinds:
            raise R1Error(
                f"stream.path: {path} must hold files of one kind; "
                f"give one of {', '.join(FORMATS)}"
            )
        return datasets.load_dataset(
            kinds.pop(),
            data_files=[str(p) for p in files],
            split="train",
            streaming=True,
        )
    try:
        return datasets.load_dataset(
            config.path, config.subset, split=config.split, streaming=True
        )
    except Exception as e:  # the library raises many kinds
        reason = (str(e) or type(e).__name__).splitlines()[0][:120]
        raise R1Error(
            f"stream.path: {config.path} is no local file and cannot be opened on the "
            f"hub ({reason}); check the name and the network, or name local files"
        ) from e
