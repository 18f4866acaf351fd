"""Feeds: what an endless mixture draws from, datasets and texts at hand alike.

Each gives its documents in an order that only its seed and a place decide. What is
held out is decided by a text's own hash, so that nobody has to have read the whole
dataset first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from r1lite.data.config import DataConfig
from r1lite.data.corpus import Corpus, hash_place, size
from r1lite.data.dedup import TestText
from r1lite.data.domains import Domain, Extra, load_domains, named_shares
from r1lite.data.stream import Place, StreamConfig, TextStream
from r1lite.errors import R1Error

Read = Callable[[Place], Iterator[tuple[Place, str]]]
SCAN = 5000  # documents of a stream that are searched for held-out ones, at most


@dataclass(frozen=True)
class Feed:
    """One source of an endless mixture.

    share: of all tokens. read(place): (the place after it, the text) of each
    document from `place` on, epoch after epoch. accepts(text): may it be trained on?
    """

    name: str
    domain: str
    package: str
    licence: str
    share: float
    read: Read
    accepts: Callable[[str], bool]

    def documents(self, start: Place) -> Iterator[tuple[Place, Place, str]]:
        """(place before, place after, text) of the documents to train on.

        Raises:
            R1Error: an epoch has none.
        """
        # Of an epoch that is resumed, what came before may have been accepted.
        before, last = start, start.epoch - (start.number == 0)
        for after, text in self.read(start):
            if self.accepts(text):
                last = after.epoch
                yield before, after, text
            elif after.epoch > last + 1:
                raise R1Error(
                    f"data.streams.{self.domain}: {self.name} holds nothing but what "
                    "is held out; lower data.heldout or name another dataset"
                )
            before = after


def read_texts(texts: Sequence[str], name: str, seed: int) -> Read:
    """Endless reading of texts at hand, each epoch in an order of its own."""

    def read(start: Place) -> Iterator[tuple[Place, str]]:
        epoch, first = start
        while True:
            rng = random.Random(f"feed/{seed}/{name}/{epoch}")
            keys = [rng.random() for _ in texts]
            order = sorted(range(len(texts)), key=keys.__getitem__)
            for number in range(first, len(order)):
                yield Place(epoch, number + 1), texts[order[number]]
            epoch, first = epoch + 1, 0

    return read


def open_feeds(
    config: DataConfig,
    seed: int,
    extra: Extra,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
) -> tuple[list[Feed], dict[str, list[str]]]:
    """Every feed of the mixture, and the held-out documents of each domain.

    In a domain with streams, all text at hand together counts as one more dataset
    of weight 1.

    Raises:
        R1Error: a dataset cannot be opened, or a domain has no text.
    """
    streams = {d: _open(d, s, seed) for d, s in config.streams.items()}
    at_hand = {
        d: share
        for d, share in config.mixture.items()
        if d not in streams or config.sources[d] or extra.get(d)
    }
    only = config.model_copy(update={"mixture": at_hand})
    held: dict[str, list[str]] = {}
    for domain in config.mixture:  # streams first: text at hand fills what is left
        found = streams.get(domain, [])
        room = config.heldout_bytes // max(1, len(found) + bool(at_hand.get(domain)))
        held[domain] = [t for s in found for t in _held_out(s, config.heldout, room)]
    streamed = [t for texts in held.values() for t in texts]
    local = load_domains(only, extra, root, [*streamed, *tests])
    for domain, loaded in local.items():
        held[domain] += loaded.held
    known = TestText([*(t for texts in held.values() for t in texts), *tests])

    def accepts(text: str) -> bool:
        if hash_place(text) < config.heldout:
            return False
        return config.overlap == 1 or known.overlap(text) <= config.overlap

    feeds: list[Feed] = []
    for domain, share in config.mixture.items():
        if share:
            make = partial(_feeds_of, domain, share, seed, accepts)
            feeds += make(streams.get(domain, []), local.get(domain))
    return feeds, {d: texts for d, texts in held.items() if texts}


def _open(domain: str, configs: Sequence[StreamConfig], seed: int) -> list[TextStream]:
    try:
        return [TextStream(c, seed) for c in configs]
    except R1Error as e:
        reason = str(e).removeprefix("stream.path: ")
        raise R1Error(f"data.streams.{domain}: {reason}") from e


def _feeds_of(
    domain: str,
    share: float,
    seed: int,
    accepts: Callable[[str], bool],
    streams: list[TextStream],
    local: Domain | None,
) -> list[Feed]:
    """The domain's datasets by their weights, then its texts at hand."""
    whole = sum(s.config.weight for s in streams) + (1.0 if local else 0.0)
    made = []
    for s in streams:
        name = "/".join(x for x in (s.config.path, s.config.subset) if x)
        part = share * s.config.weight / whole
        where = "datasets", "as its card says"
        made.append(Feed(name, domain, *where, part, s.read, accepts))
    corpora: list[Corpus] = local.corpora if local else []
    parts = named_shares(corpora)
    for c in corpora:
        source, part = c.source, share * parts[c.source.name] / whole
        read = read_texts(c.texts, source.name, seed)
        where = source.package, source.licence
        made.append(Feed(source.name, domain, *where, part, read, lambda _: True))
    return made


def _held_out(stream: TextStream, share: float, room: int) -> list[str]:
    """The first documents that a hash holds out, about `room` bytes of them."""
    found: list[str] = []
    for place, text in stream.read():
        if room <= 0 or place.epoch or place.number > SCAN or not share:
            break
        if hash_place(text) < share:
            found.append(text)
            room -= size(text)
    return found
