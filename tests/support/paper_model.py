"""A model on paper: its pages hold what was written there, and it checks them.

It stands where the engine's runner stands. A slot remembers the whole history
that led to its token, as one number, so that a page shared wrongly, freed too
early, written twice or matched by a false hash is seen the moment anybody reads
it. The next token is a function of the history alone: what a request must get is
known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from r1lite.serving import engine as engine_module
from r1lite.serving.engine import Engine
from r1lite.serving.pages import Hash
from r1lite.serving.sequence import Work
from r1lite.serving.types import EngineConfig

VOCAB, CONTEXT, END = 13, 64, 1


def histories(tokens: Sequence[int]) -> list[int]:
    """One number for every beginning of `tokens`, none for no token."""
    return [*accumulate(tokens, lambda h, token: hash((h, token)), initial=0)][1:]


@cache
def logits_of(history: int) -> list[float]:
    """Of the next token, spread enough for sampling to matter."""
    return [hash((history, -token)) % 997 / 150 for token in range(2, VOCAB + 2)]


def best(history: int) -> int:
    """The greedy token."""
    logits = logits_of(history)
    return logits.index(max(logits))


class PaperRunner:
    """Runs work on paper."""

    def __init__(self, model: Any, num_pages: int, page_size: int, mtp: bool) -> None:
        self.size = page_size
        self.slots: list[int | None] = [None] * (num_pages * page_size)
        self.pool: Any = None  # put here once the engine has one
        self.rows: list[int] = []

    def run(self, work: Sequence[Work]) -> Tensor:
        """Copy, read everything, write everything, answer."""
        self._copy([w.copy for w in work if w.copy])
        written: set[int] = set()
        logits: list[list[float]] = []
        self.rows = []
        for w in work:
            guess = [] if w.sample.draft is None else [w.sample.draft]
            past = histories([*w.sample.tokens, *guess][: w.start + w.count])
            for place in range(w.start):
                assert self.slots[self._slot(w, place)] == past[place], "a page lies"
            for place in range(w.start, w.start + w.count):
                slot = self._slot(w, place)
                assert self.pool.refs[slot // self.size] == 1, "writes to a shared page"
                assert slot not in written, "two samples write to one place"
                written.add(slot)
                self.slots[slot] = past[place]
            self.rows += past[w.start :]
            logits += [logits_of(h) for h in past[len(past) - w.outputs :]]
        return torch.tensor(logits).view(-1, VOCAB)

    def draft(self, following: Sequence[int], wanted: Sequence[int]) -> list[int]:
        """The right guess after two histories of three."""
        guesses = []
        for row in wanted:
            history = hash((self.rows[row], following[row]))
            wrong = history % 3 == 0
            guesses.append((best(history) + wrong) % VOCAB)
        return guesses

    def _slot(self, w: Work, place: int) -> int:
        page = w.sample.pages[place // self.size]
        return page * self.size + place % self.size

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        def page(number: int) -> slice:
            return slice(number * self.size, (number + 1) * self.size)

        held = [self.slots[page(source)] for source, _ in copies]
        for content, (_, target) in zip(held, copies, strict=True):
            self.slots[page(target)] = content


def paper_engine(config: EngineConfig, hash_fn: Hash | None = None) -> Engine:
    """An engine whose model is on paper; `hash_fn` may be as bad as you like."""
    facts = SimpleNamespace(
        vocab_size=VOCAB, eos_token_id=END, max_position_embeddings=CONTEXT
    )
    model: Any = SimpleNamespace(config=facts, mtp=object())
    real, engine_module.Runner = engine_module.Runner, PaperRunner  # type: ignore[misc, assignment]
    try:
        engine = Engine(model, None, config)
    finally:
        engine_module.Runner = real  # type: ignore[misc]
    engine.runner.pool = engine.pool  # type: ignore[attr-defined]
    if hash_fn:
        engine.pool.hash_fn = hash_fn
    return engine


def check_pages(engine: Engine) -> None:
    """Every page is in one state, held by exactly those who say so."""
    pool, scheduler = engine.pool, engine.scheduler
    holders = [0] * len(pool.refs)
    for sample in scheduler.running:
        assert len(set(sample.pages)) == len(sample.pages)
        assert len(sample.pages) * pool.page_size >= sample.computed
        for page in sample.pages:
            holders[page] += 1
    assert holders == pool.refs, "a page is leaked or held by nobody"
    states = [*pool.free, *pool.idle, *(p for p, n in enumerate(holders) if n)]
    assert sorted(states) == list(range(len(holders))), "a page is in two states"
    assert all(pool.holds[p] is None for p in pool.free)
    assert all(pool.holds[p] is not None for p in pool.idle)
    for key, page in pool.index.items():
        held = pool.holds[page]
        assert held is not None and held.key == key
    assert not any(s.pages or s.computed for s in scheduler.waiting)
    assert sum(s.slots for s in scheduler.running) <= engine.config.max_running
    assert {s.request.id for s in scheduler.running + scheduler.waiting} == set(
        engine.requests
    ), "a request is forgotten"
