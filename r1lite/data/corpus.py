"""A corpus: one source's documents, held-out ones apart, drawn in random order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from r1lite.data.sources import Source, content_hash
from r1lite.data.tokenizer import R1Tokenizer

CONTROL_TOKENS = 2  # packing adds a begin and an end token to each document
CHUNK = 200_000  # bytes encoded at once: enough to be fast, little to throw away


def size(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text.encode("utf-8", "replace"))


def hash_place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: which split it is in."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass
class Drawn:
    """Documents drawn for training, as ids without control tokens.

    bytes: of text they stand for. epochs: that over the bytes there were.
    """

    ids: list[list[int]] = field(default_factory=list)
    bytes: float = 0.0
    epochs: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens, the two control tokens of each document included."""
        return sum(len(x) + CONTROL_TOKENS for x in self.ids)


class Corpus:
    """Training documents of a source. `hash` covers the held-out ones too."""

    def __init__(
        self, source: Source, cap: float, documents: Sequence[str], held: set[str]
    ) -> None:
        self.source, self.cap = source, cap
        self.hash = content_hash(documents)
        self.texts = [t for t in documents if t not in held]
        self.sizes = [size(t) for t in self.texts]
        self.bytes = sum(self.sizes)

    def draw_texts(self, max_bytes: int, seed: int) -> Iterator[str]:
        """Documents in random order, each once, until `max_bytes` are reached."""
        taken = 0
        for i in self._order(seed, 0):
            if taken >= max_bytes:
                return
            taken += self.sizes[i]
            yield self.texts[i]

    def draw(self, tokenizer: R1Tokenizer, tokens: int, seed: int) -> Drawn:
        """Documents in random order, as many epochs as needed, for `tokens` tokens.

        The last one is cut to fit. At most CONTROL_TOKENS are left unused, for
        there is no document without text.
        """
        drawn, left = Drawn(), tokens
        known: dict[int, list[int]] = {}
        stream = self._stream(seed)
        while left > CONTROL_TOKENS:
            chunk = self._chunk(stream, min(CHUNK, 2 * left))
            new = [i for i in chunk if i not in known]
            encoded = tokenizer.encode_batch([self.texts[i] for i in new])
            known |= dict(zip(new, encoded, strict=True))
            for i in chunk:
                if left <= CONTROL_TOKENS:
                    break
                ids = known[i][: left - CONTROL_TOKENS]
                drawn.ids.append(ids)
                drawn.bytes += self.sizes[i] * len(ids) / len(known[i])
                left -= len(ids) + CONTROL_TOKENS
        drawn.epochs = drawn.bytes / self.bytes
        return drawn

    def _chunk(self, stream: Iterator[int], at_least: int) -> list[int]:
        """The next documents of `stream`, `at_least` bytes, none of them twice."""
        chunk: list[int] = []
        taken = 0
        while taken < at_least and len(chunk) < len(self.texts):
            chunk.append(next(stream))
            taken += self.sizes[chunk[-1]]
        return chunk

    def _stream(self, seed: int) -> Iterator[int]:
        """Indices of documents, epoch after epoch, each in an order of its own."""
        epoch = 0
        while True:
            yield from self._order(seed, epoch)
            epoch += 1

    def _order(self, seed: int, epoch: int) -> list[int]:
        # Sorted by `random()` and not shuffled: Python promises the first to
        # be the same in every version. By the text's hash and not by the name:
        # a folder's name is another on every machine.
        rng = random.Random(f"draw/{seed}/{self.hash}/{epoch}")
        keys = [rng.random() for _ in self.texts]
        return sorted(range(len(keys)), key=keys.__getitem__)


def hold_out(documents: Sequence[str], share: float) -> list[str]:
    """The held-out documents of a domain: those with the lowest hashes.

    A document is held out because of its text alone, so it stays so when
    other documents, sources or seeds change. `share` 0 holds none out; else
    there is at least one when there are two documents.
    """
    if not share or len(documents) < 2:
        return []
    ranked = sorted(documents, key=hash_place)
    chosen = [t for t in ranked if hash_place(t) < share]
    return chosen[: len(ranked) - 1] or ranked[:1]


def source_shares(corpora: Sequence[Corpus]) -> list[float]:
    """Share of each corpus in its domain: by bytes, none above its cap.

    What a cap takes away goes to the others in proportion. Caps that together
    leave room are scaled up: a cap holds a source back only behind others.
    """
    room = min(1.0, sum(c.cap for c in corpora))
    caps = [c.cap / room for c in corpora]
    shares = [0.0] * len(corpora)
    free = list(range(len(corpora)))
    rest = 1.0
    while free:
        weight = sum(corpora[i].bytes for i in free)
        wanted = {i: rest * corpora[i].bytes / weight for i in free}
        full = [i for i in free if wanted[i] >= caps[i]]
        for i in full or free:
            shares[i] = caps[i] if full else wanted[i]
        rest -= sum(shares[i] for i in full)
        free = [i for i in free if full and i not in full]
    return shares


def split(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` in whole parts by `shares` (sum 1), the parts' sum exact."""
    ends, done = {}, 0.0
    for name, share in shares.items():
        done += share
        ends[name] = round(total * done)
    if ends:  # a mixture's shares sum to 1 within a tolerance only
        ends[name] = total
    starts = [0, *list(ends.values())[:-1]]
    return {n: e - s for (n, e), s in zip(ends.items(), starts, strict=True)}
