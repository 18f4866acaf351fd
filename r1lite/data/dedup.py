"""Duplicates removed from training text, and training text removed from tests.

Near-duplicates are found by MinHash (Broder, 1997): documents are sets of word
5-grams, and the share of equal signature values estimates the Jaccard similarity.
Decontamination drops training text that shares a long n-gram with a test; R1's
authors match 10-grams (arXiv 2501.12948 v2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Chinese and Japanese have no blanks between words: a sign counts as one. Other
# signs count too, for they are what code and sums are made of.
SIGN = "\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{SIGN}]|[^\W{SIGN}]+|[^\w\s]")
SHINGLE = 5  # words in the n-grams of near-duplicates
LONG = 10  # words in the n-grams of decontamination
BANDS, ROWS = 16, 4  # documents of similarity 0.8 meet with probability 0.9998


@dataclass(frozen=True)
class Removed:
    """Documents and bytes that were removed, and why."""

    near: int = 0
    near_bytes: int = 0
    contaminated: int = 0
    contaminated_bytes: int = 0


def shingles(text: str, n: int = SHINGLE) -> Hashes:
    """Sorted 64-bit hashes of the different runs of `n` words in `text`.

    Letters count in lower case. A text of fewer words is one run of all of
    them; one without words gives none.
    """
    words = WORD.findall(text.casefold())
    codes = np.array([_code(w) for w in words], dtype=np.uint64)
    n = min(n, len(codes))
    if not n:
        return codes
    mixed = np.zeros(len(codes) - n + 1, dtype=np.uint64)
    for i in range(n):  # unsigned numbers wrap around, which hashing is fond of
        mixed = mixed * np.uint64(1_099_511_628_211) + codes[i : i + len(mixed)]
    return np.unique(_scramble(mixed))


def similarity(a: Hashes, b: Hashes) -> float:
    """Jaccard similarity of two sets of hashes: shared over all."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def signature(hashes: Hashes, size: int = BANDS * ROWS) -> Hashes:
    """MinHash: the smallest of `hashes` under `size` different scramblings, (size,).

    Two sets agree in one value with the probability of their similarity.
    """
    salts = _scramble(np.arange(1, size + 1, dtype=np.uint64))
    return _scramble(hashes[:, None] ^ salts).min(axis=0)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[int | None]:
    """For each text the earlier one, itself kept, that it repeats, or None.

    Candidates share a band of their signatures; then the exact similarity
    decides. A text without words repeats nothing.
    """
    found: list[int | None] = []
    kept: dict[int, Hashes] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for i, text in enumerate(texts):
        hashes = shingles(text)
        keys = list(_bands(signature(hashes))) if len(hashes) else []
        known = sorted({j for key in keys for j in buckets.get(key, ())})
        twin = (j for j in known if similarity(kept[j], hashes) >= threshold)
        found.append(next(twin, None))
        if found[-1] is None:
            kept[i] = hashes
            for key in keys:
                buckets.setdefault(key, []).append(i)
    return found


def _bands(values: Hashes) -> Iterator[tuple[int, bytes]]:
    for i, band in enumerate(values.reshape(BANDS, ROWS)):
        yield i, band.tobytes()


class TestText:
    """The n-grams of text that training must not hold: tests, held-out documents.

    A test of fewer than `n` words has none and is not protected: a short sum
    stands in many a text by chance.
    """

    __test__ = False  # for pytest, which collects what is called Test

    def __init__(self, texts: Iterable[str], n: int = LONG) -> None:
        parts = [s for s in (_full_shingles(t, n) for t in texts) if len(s)]
        self.n = n
        self._hashes = np.unique(np.concatenate(parts or [np.empty(0, np.uint64)]))

    def overlap(self, text: str) -> float:
        """Share of the n-grams of `text` that stand in a test, 0 to 1."""
        own = _full_shingles(text, self.n)
        if not len(own) or not len(self._hashes):
            return 0.0
        place = np.searchsorted(self._hashes, own).clip(max=len(self._hashes) - 1)
        return float((self._hashes[place] == own).mean())


def _full_shingles(text: str, n: int) -> Hashes:
    """`shingles`, none if the text has fewer than `n` words."""
    long_enough = len(WORD.findall(text.casefold())) >= n
    return shingles(text, n) if long_enough else np.empty(0, np.uint64)


@cache
def _code(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _scramble(x: Hashes) -> Hashes:
    """A fixed mixing of 64 bits (the finaliser of SplitMix64); elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
