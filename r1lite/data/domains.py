"""The documents of every domain: read, cleaned of repetitions, and split.

What is held out is decided before what is removed for its sake, and both before
anything is drawn: tokenizer and training see the same documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from r1lite.data import sources
from r1lite.data.config import DataConfig
from r1lite.data.corpus import Corpus, hold_out, size, source_shares
from r1lite.data.dedup import Removed, TestText, near_duplicates
from r1lite.data.sources import Source
from r1lite.errors import R1Error

Extra = Mapping[str, Sequence[str]]  # domain: documents that the caller made


@dataclass(frozen=True)
class Domain:
    """One domain's text.

    corpora: the training documents of each source that has any.
    held: documents that are never trained on.
    removed: what repetition and overlap with tests cost.
    """

    corpora: list[Corpus]
    held: list[str]
    removed: Removed


def load_domains(
    config: DataConfig,
    extra: Extra,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
) -> dict[str, Domain]:
    """Every domain that has a share.

    Raises:
        R1Error: a domain has no text to train on, or a source cannot be read.
    """
    loaded: dict[str, Domain] = {}
    seen: set[str] = set()
    read: dict[str, _Documents] = {}
    for domain, share in config.mixture.items():
        if share:
            read[domain] = _read(config, domain, extra, root, seen)
    # What one domain holds out, no other one may train on.
    kept = [t for found in read.values() for t in found.held]
    protected = TestText([*kept, *tests]) if config.overlap < 1 else None
    for domain, (texts, twins, held) in read.items():
        known = {*twins, *held}
        leaked: set[str] = set()
        if protected:
            rest = {t for documents in texts.values() for t in documents} - known
            leaked = {t for t in rest if protected.overlap(t) > config.overlap}
        out = known | leaked
        found = [
            Corpus(s, config.caps.get(s.name, s.cap), t, out) for s, t in texts.items()
        ]
        corpora = [c for c in found if c.texts]
        if not corpora:
            raise R1Error(
                f"data.sources.{domain}: there is no text to train on; name a source "
                f"with text or set data.mixture.{domain} to 0"
            )
        removed = Removed(
            len(twins), sum(map(size, twins)), len(leaked), sum(map(size, leaked))
        )
        loaded[domain] = Domain(corpora, held, removed)
    return loaded


def named_shares(corpora: list[Corpus]) -> dict[str, float]:
    """Share of each source in its domain, by the source's name."""
    names = [c.source.name for c in corpora]
    return dict(zip(names, source_shares(corpora), strict=True))


class _Documents(NamedTuple):
    """What a domain's sources hold, and which of it is not trained on."""

    texts: dict[Source, list[str]]
    twins: set[str]
    held: list[str]


def _read(
    config: DataConfig,
    domain: str,
    extra: Extra,
    root: str | Path | None,
    seen: set[str],
) -> _Documents:
    """A domain's documents, without those in `seen`, which grows."""
    texts: dict[Source, list[str]] = {}
    for name in config.sources[domain]:
        texts[sources.find(name, root)] = sources.load(name, root)
    if extra.get(domain):
        made = Source("generated", domain, "r1lite", "MIT", lambda _: ())
        texts[made] = sources.clean(extra[domain])
    for source, documents in texts.items():  # no text counts twice
        texts[source] = [t for t in documents if t not in seen]
        seen.update(documents)
    everything = [t for documents in texts.values() for t in documents]
    # Repetitions first: of twins, one could be trained on and one held out.
    twins = _repeated(everything, config.near_duplicates)
    once = [t for t in everything if t not in twins]
    return _Documents(texts, twins, hold_out(once, config.heldout))


def _repeated(texts: list[str], threshold: float) -> set[str]:
    """Texts that nearly repeat an earlier one; none at a threshold of 0."""
    twins = near_duplicates(texts, threshold) if threshold else []
    return {t for t, twin in zip(texts, twins, strict=False) if twin is not None}
