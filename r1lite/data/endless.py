"""The mixture of a recipe that names streams: what `mixture` is for texts at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1lite.data.config import DataConfig
from r1lite.data.corpus import size
from r1lite.data.domains import Extra
from r1lite.data.feeds import Feed, open_feeds
from r1lite.data.mixture import HeldOut, encode_held
from r1lite.data.stream import Place
from r1lite.data.streamed import Cursor, StreamedRows
from r1lite.data.tokenizer import R1Tokenizer


@dataclass(frozen=True)
class Endless:
    """Rows without end, and held-out documents by domain."""

    config: DataConfig
    rows: StreamedRows
    heldout: dict[str, HeldOut]

    @property
    def summary(self) -> dict[str, Any]:
        """What was taken so far, as `mixture.build` says what it drew."""
        taken = self.rows.taken()
        total = max(1, sum(c.tokens for _, c in taken))
        domains: dict[str, Any] = {}
        for domain, asked in self.config.mixture.items():
            own = [(f, c) for f, c in taken if f.domain == domain]
            if own:
                domains[domain] = _domain(asked, own, total)
        return {
            "tokens": total,
            "domains": domains,
            "heldout_bytes": {d: h.bytes for d, h in self.heldout.items()},
            "heldout_documents": {d: len(h.ids) for d, h in self.heldout.items()},
        }


def build(
    config: DataConfig,
    tokenizer: R1Tokenizer,
    seq_len: int,
    seed: int,
    extra: Extra | None = None,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
    index: Path | None = None,
    writes: bool = True,
) -> Endless:
    """Open every feed of the mixture; `index` and `writes` as in `StreamedRows`.

    Raises:
        R1Error: a dataset cannot be opened, or a domain has no text.
    """
    feeds, held = open_feeds(config, seed, extra or {}, root, tests)
    rows = StreamedRows(feeds, tokenizer, seq_len, seed, index, writes, config.fim)
    heldout = {
        d: encode_held(texts, tokenizer, config.heldout_bytes)
        for d, texts in held.items()
    }
    return Endless(config, rows, heldout)


def tokenizer_texts(
    config: DataConfig,
    extra: Extra | None,
    seed: int,
    max_bytes: int,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
) -> list[str]:
    """About `max_bytes` of training text in the mixture's shares, by bytes."""
    texts: list[str] = []
    for feed in open_feeds(config, seed, extra or {}, root, tests)[0]:
        left = round(max_bytes * feed.share)
        for _, after, text in feed.documents(Place()):
            if left <= 0 or after.epoch:
                break
            texts.append(text)
            left -= size(text)
    return texts


def _domain(
    asked: float, taken: list[tuple[Feed, Cursor]], total: int
) -> dict[str, Any]:
    """Plain values, named as `mixture.build` names them."""
    tokens = sum(c.tokens for _, c in taken)
    return {
        "asked": asked,
        "share": tokens / total,
        "tokens": tokens,
        "bytes": round(sum(c.bytes for _, c in taken)),
        "documents": sum(c.documents for _, c in taken),
        "epochs": max(c.epoch for _, c in taken),
        "sources": [
            {
                "name": f.name,
                "package": f.package,
                "licence": f.licence,
                "documents": c.documents,
                "bytes": round(c.bytes),
                "tokens": c.tokens,
                "epochs": c.epoch,
            }
            for f, c in taken
        ],
    }
