"""The data section of a recipe: shares, sources, caps, what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from r1lite.data import sources
from r1lite.data.sources import SOURCES
from r1lite.data.stream import StreamConfig
from r1lite.errors import R1Error
from r1lite.settings import Section

# The mixture of the article, section 3.1.
ARTICLE = {"general": 0.60, "code": 0.20, "languages": 0.15, "mathematics": 0.05}


class DataConfig(Section):
    """Section `[data]`.

    mixture: domain = share of tokens; the shares sum to 1.
    sources: domain = names of sources, or "folder:/path"; a domain that is
        not named has those that R1-lite knows for it.
    caps: source = its largest share in its domain, in place of its own.
    heldout: share of documents, chosen by hash, that are never trained on.
    heldout_bytes: held-out text of a domain that is measured, at most.
    near_duplicates: similarity from which a document counts as a repetition of
        an earlier one of its domain and is dropped; 0 keeps all.
    overlap: a training document of whose 10-grams more than this share stand in
        held-out text of any domain is dropped; 1 keeps all. Tests count as well
        where the caller names them; the stages of a recipe name none.
    fim: domain = share of its documents that are reordered to fill in the middle.
    streams: domain = datasets that are read while training goes on, in place of
        the sources that R1-lite knows; those that `sources` names stay beside them.
    """

    model_config = ConfigDict(validate_default=True)

    mixture: dict[str, float] = ARTICLE
    streams: dict[str, tuple[StreamConfig, ...]] = Field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    caps: dict[str, float] = Field(default_factory=dict)
    heldout: float = Field(default=0.05, ge=0, le=0.5)
    heldout_bytes: int = Field(default=50_000, ge=1)
    near_duplicates: float = Field(default=0.0, ge=0, le=1)
    overlap: float = Field(default=1.0, ge=0, le=1)
    fim: dict[str, float] = Field(default_factory=dict)

    @field_validator("mixture")
    @classmethod
    def _sums_to_one(cls, shares: dict[str, float]) -> dict[str, float]:
        for domain, share in shares.items():
            if share < 0:
                raise ValueError(f"{domain} has share {share}; give 0 or more")
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares sum to {total:.6g}; make them sum to 1")
        return shares

    @field_validator("streams")
    @classmethod
    def _streams_of_domains(
        cls, given: dict[str, tuple[StreamConfig, ...]], info: ValidationInfo
    ) -> dict[str, tuple[StreamConfig, ...]]:
        domains = info.data.get("mixture", given)
        for domain, streams in given.items():
            if domain not in domains:
                raise ValueError(f"{domain} is no domain; {_hint(domain, domains)}")
            if not streams:
                raise ValueError(f"{domain} names no dataset; name one or leave it out")
        return given

    @field_validator("near_duplicates")
    @classmethod
    def _not_of_streams(cls, threshold: float, info: ValidationInfo) -> float:
        if threshold and info.data.get("streams"):
            raise ValueError(
                "a stream is not searched for repetitions, which needs all of it; set "
                "it to 0 and choose datasets without"
            )
        return threshold

    @field_validator("sources")
    @classmethod
    def _known_sources(
        cls, given: dict[str, tuple[str, ...]], info: ValidationInfo
    ) -> dict[str, tuple[str, ...]]:
        domains = info.data.get("mixture", given)
        for domain, names in given.items():
            if domain not in domains:
                raise ValueError(f"{domain} is no domain; {_hint(domain, domains)}")
            if len(set(names)) < len(names):
                raise ValueError(f"{domain} names a source twice; name it once")
            _find_all(names)
        streams = info.data.get("streams", {})
        known = {d: () if d in streams else _default_sources(d) for d in domains}
        return {d: given.get(d, known[d]) for d in domains}

    @field_validator("caps")
    @classmethod
    def _fair_caps(
        cls, caps: dict[str, float], info: ValidationInfo
    ) -> dict[str, float]:
        used = [n for names in info.data.get("sources", {}).values() for n in names]
        for name, cap in caps.items():
            if name not in [*used, *SOURCES]:
                raise ValueError(f"{name} is no source; {_hint(name, SOURCES)}")
            if not 0 < cap <= 1:
                raise ValueError(f"{name} has cap {cap}; give above 0, at most 1")
        return caps

    @field_validator("fim")
    @classmethod
    def _shares_of_domains(
        cls, fim: dict[str, float], info: ValidationInfo
    ) -> dict[str, float]:
        for domain, share in fim.items():
            domains = info.data.get("mixture", fim)
            if domain not in domains:
                raise ValueError(f"{domain} is no domain; {_hint(domain, domains)}")
            if not 0 <= share <= 1:
                raise ValueError(f"{domain} has share {share}; give 0 to 1")
        return fim


def _default_sources(domain: str) -> tuple[str, ...]:
    return tuple(s.name for s in SOURCES.values() if s.domain == domain)


def _find_all(names: Sequence[str]) -> None:
    for name in names:
        try:
            sources.find(name)
        except R1Error as e:
            raise ValueError(str(e).removeprefix("data.sources: ")) from e


def _hint(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose {', '.join(known)}"
