"""Exercises of chapter 7: text to tokens, tokens to rows, rows to a base model."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from r1lite.data.packing import PackedRows
from r1lite.training.optim import OptimConfig


# %% 7.1 | Two kinds of per cent | predict | level 1 | 10 min
# A mixture of two domains. A code document has 1,000 tokens, a dialogue 100. First:
# documents are drawn so that 20 % of them are code. What share of the tokens is
# code? Second: 20 % of the *tokens* shall be code. What share of the documents must
# be code? Both as numbers between 0 and 1, right to 0.001.
CODE_OF_TOKENS = 20_000 / 28_000
CODE_OF_DOCUMENTS = 20 / 820


# %% 7.2 | One merge | fill | level 2 | 20 min
# One step of BPE. `words` maps a word, a tuple of signs, to how often it stands in
# the text: {("l", "o", "w"): 5}. Find the pair of neighbours that stands there most
# often (a word counts as often as it stands; a pair can be in one word twice), of
# equally common ones the smallest. Then join it in every word, from left to right:
# joining a a in (a, a, a) gives (aa, a). Words without the pair stay. Returns the
# pair and the new words. Without any pair it returns None and the words.
def merge_step(
    words: dict[tuple[str, ...], int],
) -> tuple[tuple[str, str] | None, dict[tuple[str, ...], int]]:
    """The commonest pair, and the words with it joined."""
    pairs: Counter[tuple[str, str]] = Counter()
    for word, times in words.items():
        for pair in pairwise(word):
            pairs[pair] += times
    if not pairs:
        return None, words
    best = min(pairs, key=lambda p: (-pairs[p], p))
    joined: dict[tuple[str, ...], int] = {}
    for word, times in words.items():
        new: list[str] = []
        for sign in word:
            if new and (new[-1], sign) == best:
                new[-1] += sign
            else:
                new.append(sign)
        joined[tuple(new)] = joined.get(tuple(new), 0) + times
    return best, joined


# %% 7.3 | One row of the stream | fill | level 3 | 30 min | swaps r1lite.data.packing.PackedRows.row
# Row number `index` of the endless stream of packed documents. What you have:
#   self.width               tokens in a row
#   self.tokens              tokens in an epoch
#   self._tokens             all tokens, document by document, (tokens,)
#   self._starts, _lengths   where each document begins in it, and how long it is
#   self._epoch(e)           (order, ends): the documents in the order of epoch e,
#                            and where each ends in that epoch's stream
# The row covers the places index * width to (index + 1) * width of the stream, which
# may run over the end of an epoch, of several even. Returns three int64 arrays
# (width,): the ids; the document ids, epoch * number of documents + place in that
# epoch's order; and positions, counted from 0 where the row first shows a document.
def row(self: PackedRows, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, document ids and positions of row `index`."""
    ids = np.empty(self.width, dtype=np.int64)
    documents, positions = np.empty_like(ids), np.empty_like(ids)
    filled = 0
    while filled < self.width:
        epoch, at = divmod(index * self.width + filled, self.tokens)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, at, side="right"))
        document, left = order[place], int(ends[place]) - at
        length = min(left, self.width - filled)
        start = int(self._starts[document] + self._lengths[document]) - left
        here = slice(filled, filled + length)
        ids[here] = self._tokens[start : start + length]
        documents[here] = epoch * len(order) + place
        positions[here] = np.arange(length)
        filled += length
    return ids, documents, positions


# %% 7.4 | Up, along, down | bug | level 2 | 15 min | swaps r1lite.training.optim.lr_scale
# The factor on the learning rate at `step` (from 0) of `total`. Warm-up: step 0 has
# 1 / warmup_steps, and the last step of the warm-up has 1. Then 1, until
# `decay_fraction` of the total is left. Over that part half a cosine wave, from 1
# down to final_lr at step `total`; halfway it stands midway between the two. The
# code below runs and the plot looks right at a glance. Find the one mistake.
def lr_scale(config: OptimConfig, step: int, total: int) -> float:
    """The factor, between 0 and 1."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_steps = max(1, round(total * config.decay_fraction))
    done = (step - (total - decay_steps)) / decay_steps
    if done <= 0:
        return 1.0
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.final_lr + (1 - config.final_lr) * wave


# %% 7.5 | The smallest hash | fill | level 2 | 20 min
# MinHash. `hashes` (n,) uint64 stand for the word runs of one text; `salts` (size,)
# uint64 are random numbers, one for each entry of the signature; `scramble` mixes
# the bits of every number of an array. Entry i is the smallest scrambled value of
# `hash XOR salt i` over all hashes. Returns (size,) uint64. Then estimate the Jaccard
# similarity of two texts from their signatures, a float.
Scramble = Callable[[np.ndarray], np.ndarray]


def signature(hashes: np.ndarray, salts: np.ndarray, scramble: Scramble) -> np.ndarray:
    """(n,) and (size,) -> (size,), all uint64."""
    smallest: np.ndarray = scramble(hashes[:, None] ^ salts).min(axis=0)
    return smallest


def estimate(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of the texts with signatures `a` and `b`, (size,) each."""
    return float((a == b).mean())


# %% 7.6 | Which text is easier? | measure | level 2 | 15 min
# Load the base model and the tokenizer of chapters/fixtures/nano/base, as chapter 7
# does, and measure two lines of text, each as a document that starts with the begin
# token:
#   CODE   = "def add(self, value): return self.value + value"
#   DIGITS = "12345678 12345678 12345678"
# Report the bits per byte of both, right to 0.01. In nats a *token* the digits are
# the easier line (3.16 against 3.93). Say why the two measures disagree:
#   "bytes":   a token of code stands for three bytes, a digit's for one;
#   "context": the digits are the shorter text;
#   "model":   the model has read more code than digits.
BITS_CODE = 1.81
BITS_DIGITS = 4.56
WHY = "bytes"
