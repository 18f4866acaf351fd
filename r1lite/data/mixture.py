"""The mixture: shares of domains by tokens, measured, with held-out documents.

The default is the article's 60 % general, 20 % code, 15 % languages and 5 %
mathematics. A share counts tokens of this tokenizer: by bytes, the languages
that it cuts finely would get more of the training than it says.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from r1lite.data import sources
from r1lite.data.config import DataConfig
from r1lite.data.corpus import Corpus, Drawn, size, split
from r1lite.data.domains import Extra, load_domains, named_shares
from r1lite.data.fim import fill_in_the_middle
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

__all__ = ["DataConfig", "HeldOut", "Mixture", "build", "tokenizer_texts"]


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents of a domain: [bos] + tokens each, and their bytes."""

    ids: list[list[int]]
    bytes: int


@dataclass(frozen=True)
class Mixture:
    """What a run trains on.

    documents: token ids without control tokens, domain by domain; PackedRows
        adds those and mixes the order.
    heldout: domain: documents to measure bits per byte on.
    summary: plain values for the report, see `build`.
    """

    documents: list[list[int]]
    heldout: dict[str, HeldOut]
    summary: dict[str, Any]


def build(
    config: DataConfig,
    tokenizer: R1Tokenizer,
    tokens_needed: int,
    seed: int,
    extra: Extra | None = None,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
) -> Mixture:
    """Draw `tokens_needed` tokens, control tokens included, by the mixture's shares.

    A source that is too short repeats. `extra` adds documents to domains;
    `root` is where a relative "folder:" begins; `tests` are texts that
    `config.overlap` protects besides the held-out ones. Documents reordered to
    fill in the middle are a few tokens longer than was drawn. The summary has
    "domains", for each what it was asked for and got with its sources, and what
    was removed; "heldout_bytes" by domain; "python", the version, for its
    library's text depends on it; and "hash" over all text.

    Raises:
        R1Error: a domain has no text, or a source cannot be read.
    """
    loaded = load_domains(config, extra or {}, root, tests)
    domains: dict[str, Any] = {}
    documents: list[list[int]] = []
    quotas = split(tokens_needed, {d: config.mixture[d] for d in loaded})
    for domain, found in loaded.items():
        corpora = found.corpora
        parts = split(quotas[domain], named_shares(corpora))
        drawn = [c.draw(tokenizer, parts[c.source.name], seed) for c in corpora]
        if rate := config.fim.get(domain, 0.0):
            drawn = [
                replace(d, ids=fill_in_the_middle(tokenizer, d.ids, rate, seed))
                for d in drawn
            ]
        documents += [ids for d in drawn for ids in d.ids]
        domains[domain] = _domain_summary(config.mixture[domain], corpora, drawn)
        domains[domain]["removed"] = asdict(found.removed)
    total = sum(d["tokens"] for d in domains.values())
    if not total:
        raise R1Error(
            f"data: {tokens_needed} tokens hold no document of any source; "
            "ask for more tokens"
        )
    for d in domains.values():
        d["share"] = d["tokens"] / total
    heldout = {
        d: encode_held(x.held, tokenizer, config.heldout_bytes)
        for d, x in loaded.items()
        if x.held
    }
    summary = {
        "python": platform.python_version(),
        "tokens": total,
        "hash": sources.content_hash(d["hash"] for d in domains.values()),
        "domains": domains,
        "heldout_bytes": {d: h.bytes for d, h in heldout.items()},
        "heldout_documents": {d: len(h.ids) for d, h in heldout.items()},
    }
    return Mixture(documents, heldout, summary)


def tokenizer_texts(
    config: DataConfig,
    extra: Extra | None,
    seed: int,
    max_bytes: int,
    root: str | Path | None = None,
    tests: Sequence[str] = (),
) -> list[str]:
    """About `max_bytes` of training text in the mixture's shares, by bytes.

    Each document at most once; nothing that is held out.
    """
    texts: list[str] = []
    loaded = load_domains(config, extra or {}, root, tests)
    quotas = split(max_bytes, {d: config.mixture[d] for d in loaded})
    for domain, found in loaded.items():
        parts = split(quotas[domain], named_shares(found.corpora))
        for c in found.corpora:
            texts += c.draw_texts(parts[c.source.name], seed)
    return texts


def encode_held(texts: list[str], tokenizer: R1Tokenizer, most: int) -> HeldOut:
    """As many documents, in the order given, as fit into `most` bytes; one at least."""
    taken, total = [texts[0]], size(texts[0])
    for text in texts[1:]:
        if total + size(text) <= most:
            taken.append(text)
            total += size(text)
    ids = [[tokenizer.bos_id, *x] for x in tokenizer.encode_batch(taken)]
    return HeldOut(ids, total)


def _domain_summary(
    asked: float, corpora: list[Corpus], drawn: list[Drawn]
) -> dict[str, Any]:
    """Plain values that say what a domain got, and from where."""
    parts: list[dict[str, Any]] = [
        {
            "name": c.source.name,
            "package": c.source.package,
            "version": c.source.version,
            "licence": c.source.licence,
            "documents": len(d.ids),
            "bytes": round(d.bytes),
            "tokens": d.tokens,
            "epochs": round(d.epochs, 3),
            "hash": c.hash,
        }
        for c, d in zip(corpora, drawn, strict=True)
    ]
    return {
        "asked": asked,
        "documents": sum(p["documents"] for p in parts),
        "bytes": sum(p["bytes"] for p in parts),
        "tokens": sum(p["tokens"] for p in parts),
        "epochs": max(p["epochs"] for p in parts),
        "licences": sorted({c.source.licence for c in corpora}),
        "hash": sources.content_hash(c.hash for c in corpora),
        "sources": parts,
    }
