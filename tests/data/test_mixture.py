"""The mixture: shares by tokens, held-out text never trained on, exact repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1lite.data import mixture
from r1lite.data.config import ARTICLE
from r1lite.data.corpus import Corpus, hold_out, source_shares, split
from r1lite.data.mixture import DataConfig
from r1lite.data.packing import PackedRows
from r1lite.data.sources import SOURCES, load
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.settings import parse

SUMS = [f"{a} + {b} = {a + b}" for a in range(40) for b in range(40)]
EXTRA = {"mathematics": SUMS}
TOKENS = 60_000


@pytest.fixture(scope="module")
def built(tokenizer: R1Tokenizer) -> mixture.Mixture:
    return mixture.build(DataConfig(), tokenizer, TOKENS, 0, EXTRA)


def folder_config(path: Path, **more: Any) -> DataConfig:
    values = {"mixture": {"general": 1.0}, "sources": {"general": [f"folder:{path}"]}}
    return parse(DataConfig, {**values, **more}, "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(60):
        (tmp_path / f"{i:02}.txt").write_text(f"Text number {i} says {i * i}. " * 3)
    return tmp_path


def test_measured_shares_are_those_asked_for(
    built: mixture.Mixture, tokenizer: R1Tokenizer
) -> None:
    domains = built.summary["domains"]
    assert list(domains) == list(ARTICLE)
    for name, d in domains.items():
        assert d["asked"] == ARTICLE[name]
        assert abs(d["share"] - d["asked"]) < 0.005
        assert d["tokens"] == sum(s["tokens"] for s in d["sources"])
        assert d["epochs"] == max(s["epochs"] for s in d["sources"])
    total = sum(d["tokens"] for d in domains.values())
    assert 0 <= TOKENS - total < 50
    assert PackedRows(built.documents, tokenizer, 64, 0).tokens == total


def test_shares_are_counted_from_the_documents(
    built: mixture.Mixture, tokenizer: R1Tokenizer
) -> None:
    # Count again from outside: which text stands in which source's documents?
    texts = {n: "\n".join(load(n)) for n in ("bbe", "algorithms", "sotu")}
    counted = dict.fromkeys(texts, 0)
    for ids in built.documents:
        decoded = tokenizer.decode(ids[:-3]).rstrip("\ufffd")
        for name, text in texts.items():
            if len(decoded) > 60 and decoded in text:
                counted[name] += len(ids) + 2
    reported = {
        s["name"]: s["tokens"]
        for d in built.summary["domains"].values()
        for s in d["sources"]
    }
    for name, tokens in counted.items():
        assert tokens == pytest.approx(reported[name], rel=0.02)
    assert reported["bbe"] <= 0.4 * 0.6 * TOKENS + 1


def test_held_out_text_is_not_in_training(
    built: mixture.Mixture, tokenizer: R1Tokenizer
) -> None:
    assert set(built.heldout) == set(ARTICLE)
    trained = {tuple(ids) for ids in built.documents}
    for domain, part in built.heldout.items():
        assert part.ids and part.bytes <= DataConfig().heldout_bytes
        assert all(ids[0] == tokenizer.bos_id for ids in part.ids)
        assert not trained & {tuple(ids[1:]) for ids in part.ids}
        texts = [tokenizer.decode(ids[1:]) for ids in part.ids]
        assert part.bytes == sum(len(t.encode()) for t in texts)
        assert part.bytes == built.summary["heldout_bytes"][domain]
    # All sums are drawn more than once here, and still no held-out one.
    config = DataConfig(mixture={"mathematics": 1.0})
    sums = mixture.build(config, tokenizer, 40_000, 0, EXTRA)
    assert sums.summary["domains"]["mathematics"]["epochs"] > 1.5
    seen = {tokenizer.decode(ids) for ids in sums.documents}
    kept_out = {tokenizer.decode(x[1:]) for x in sums.heldout["mathematics"].ids}
    assert kept_out and not seen & kept_out
    assert set(SUMS) - seen == kept_out
    texts = set(mixture.tokenizer_texts(config, EXTRA, 0, 10**6))
    assert texts == set(SUMS) - kept_out


def test_held_out_by_text_alone() -> None:
    out = hold_out(SUMS, 0.05)
    assert 0.03 < len(out) / len(SUMS) < 0.07
    fewer = [t for t in SUMS if t.endswith("7")]
    assert set(hold_out(fewer[::-1], 0.05)) == set(out) & set(fewer)
    assert set(out) < set(hold_out(SUMS, 0.1))
    assert hold_out(SUMS, 0.0) == hold_out(["only one"], 0.5) == []
    assert len(hold_out(["a", "b"], 1e-9)) == 1
    assert len(hold_out(["a", "b"], 1.0)) == 1


def test_the_same_seed_gives_the_same_documents(
    built: mixture.Mixture, tokenizer: R1Tokenizer
) -> None:
    again = mixture.build(DataConfig(), tokenizer, TOKENS, 0, EXTRA)
    assert again == built
    other = mixture.build(DataConfig(), tokenizer, TOKENS, 1, EXTRA)
    assert other.documents != built.documents
    assert other.heldout == built.heldout  # the split is not a matter of luck
    assert other.summary["hash"] == built.summary["hash"]


def test_a_short_domain_repeats_and_says_so(
    folder: Path, tokenizer: R1Tokenizer
) -> None:
    config = folder_config(folder)
    made = mixture.build(config, tokenizer, 20_000, 0)
    source = made.summary["domains"]["general"]["sources"][0]
    texts = [tokenizer.decode(ids) for ids in made.documents]
    times = [texts.count(t) for t in set(texts[:-1])]  # the last one is cut
    assert max(times) - min(times) <= 1
    kept_out = sum(x.bytes for x in made.heldout.values())
    available = sum(len(p.read_text().strip()) for p in folder.iterdir()) - kept_out
    drawn = sum(len(t) for t in texts)
    assert source["epochs"] == pytest.approx(drawn / available, abs=0.01)
    assert source["epochs"] > 3
    assert 0 <= 20_000 - sum(len(ids) + 2 for ids in made.documents) <= 2
    assert texts[:57] != texts[57:114]  # a new order each epoch


def test_summary_is_plain_and_complete(built: mixture.Mixture) -> None:
    summary = built.summary
    assert json.loads(json.dumps(summary)) == summary
    assert summary["python"].startswith("3.")
    for d in summary["domains"].values():
        assert d["licences"] and len(d["hash"]) == 16
        for s in d["sources"]:
            assert s["licence"] and s["package"] and len(s["hash"]) == 16
            assert s["version"] or s["package"] == "r1lite"
            assert s["documents"] > 0 < s["bytes"]


def test_a_folder_may_be_moved(folder: Path, tokenizer: R1Tokenizer) -> None:
    before = mixture.build(folder_config(folder), tokenizer, 500, 0).documents
    moved = folder.rename(folder.parent / f"{folder.name}-elsewhere")
    after = mixture.build(folder_config(moved), tokenizer, 500, 0).documents
    assert before == after


def test_the_hash_follows_the_text(folder: Path, tokenizer: R1Tokenizer) -> None:
    config = folder_config(folder)
    before = mixture.build(config, tokenizer, 500, 0).summary["hash"]
    (folder / "00.txt").write_text("Changed.")
    assert mixture.build(config, tokenizer, 500, 0).summary["hash"] != before


def test_a_text_in_two_sources_counts_once(
    folder: Path, tokenizer: R1Tokenizer
) -> None:
    extra = {"general": [p.read_text() for p in folder.iterdir()] + ["A new one."]}
    config = folder_config(folder, heldout=0.0)
    texts = mixture.tokenizer_texts(config, extra, 0, 10**6)
    assert len(texts) == len(set(texts)) == 61


def test_tokenizer_texts_follow_the_mixture() -> None:
    texts = mixture.tokenizer_texts(DataConfig(), EXTRA, 0, 200_000)
    size = sum(len(t.encode()) for t in texts)
    assert 200_000 <= size < 260_000
    sums = sum(len(t) for t in texts if t in SUMS)
    assert 0.03 < sums / size < 0.06
    assert texts == mixture.tokenizer_texts(DataConfig(), EXTRA, 0, 200_000)
    assert len(set(texts)) == len(texts)


def corpus(name: str, size: int, cap: float) -> Corpus:
    return Corpus(SOURCES[name], cap, ["x" * size], set())


@pytest.mark.parametrize(
    ("sizes", "caps", "expected"),
    [
        ([300, 100], [1.0, 1.0], [0.75, 0.25]),
        ([300, 100], [0.6, 1.0], [0.6, 0.4]),
        ([800, 100, 100], [0.4, 0.4, 1.0], [0.4, 0.3, 0.3]),
        ([800, 150, 50], [0.4, 0.4, 1.0], [0.4, 0.4, 0.2]),
        ([900, 100], [0.4, 0.4], [0.5, 0.5]),
        ([500], [0.4], [1.0]),
    ],
)
def test_caps(sizes: list[int], caps: list[float], expected: list[float]) -> None:
    names = list(SOURCES)[: len(sizes)]
    made = [corpus(n, s, c) for n, s, c in zip(names, sizes, caps, strict=True)]
    assert source_shares(made) == pytest.approx(expected)


def test_split_keeps_the_sum() -> None:
    for total in (0, 1, 7, 100, 4_000_001):
        parts = split(total, ARTICLE)
        assert sum(parts.values()) == total
        assert all(abs(parts[d] - total * s) <= 1 for d, s in ARTICLE.items())
    thirds = dict.fromkeys("abc", 0.3333333)  # as near to 1 as a mixture must be
    assert sum(split(10_000_000, thirds).values()) == 10_000_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixture": {"general": 0.9}}, r"^mixture: the shares sum to 0\.9; make"),
        ({"mixture": {}}, r"^mixture: the shares sum to 0; make"),
        (
            {"mixture": {"general": 1.5, "code": -0.5}},
            r"^mixture: code has share -0\.5; give",
        ),
        ({"mixture": {"general": "1"}}, r"^mixture\.general: '1' is not a number"),
        ({"sources": {"general": ["bb"]}}, r"^sources: no source .*mean 'bbe'\?"),
        ({"sources": {"codes": ["bbe"]}}, r"^sources: codes .*mean 'code'\?"),
        ({"sources": {"code": ["bbe", "bbe"]}}, r"^sources: code names .*twice"),
        ({"sources": {"code": "bbe"}}, r"^sources\.code: 'bbe' is not a list"),
        ({"caps": {"sotuu": 0.1}}, r"^caps: sotuu .*mean 'sotu'\?"),
        ({"caps": {"sotu": 0}}, r"^caps: sotu has cap 0\.0; give"),
        ({"heldout": 0.9}, r"^heldout: 0\.9 does not fit; .*0\.5"),
        ({"heldout_byte": 1}, r"^heldout_byte: no such key; .*'heldout_bytes'"),
    ],
)
def test_bad_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(R1Error, match=message) as caught:
        parse(DataConfig, values, "data")
    assert "\n" not in str(caught.value)


def test_config_survives_being_written_and_read() -> None:
    config = parse(DataConfig, {"sources": {"general": ["sotu"]}}, "data")
    assert config.sources["general"] == ("sotu",)
    assert config.sources["code"] == ("stdlib", "algorithms")  # the default stays
    assert parse(DataConfig, config.model_dump(mode="json"), "data") == config


def test_no_text_is_an_error(tmp_path: Path, tokenizer: R1Tokenizer) -> None:
    with pytest.raises(R1Error, match=r"^data\.sources\.mathematics: .*to 0$"):
        mixture.build(DataConfig(), tokenizer, 1000, 0)
    with pytest.raises(R1Error, match=r"^data\.sources\.mathematics: "):
        mixture.tokenizer_texts(DataConfig(), None, 0, 1000)
    with pytest.raises(R1Error, match=r"is not a folder"):
        mixture.build(folder_config(tmp_path / "no"), tokenizer, 1000, 0)
    (tmp_path / "a.txt").write_text("One document.")
    assert mixture.build(folder_config(tmp_path), tokenizer, 50, 0).heldout == {}
    with pytest.raises(R1Error, match=r"^data: 2 tokens hold no document"):
        mixture.build(folder_config(tmp_path), tokenizer, 2, 0)
    no_math = {"mixture": {"general": 1.0, "mathematics": 0.0}}
    config = parse(DataConfig, {**no_math, "sources": {"general": ["sotu"]}}, "t")
    made = mixture.build(config, tokenizer, 1000, 0, {"mathematics": ["1"]})
    assert list(made.summary["domains"]) == ["general"]
