"""Streams in the mixture: shares, endlessness, exact resumption, held-out text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1lite.data import endless
from r1lite.data.config import ARTICLE, DataConfig
from r1lite.data.corpus import hash_place
from r1lite.data.feeds import open_feeds, read_texts
from r1lite.data.packing import Rows
from r1lite.data.stream import Place
from r1lite.data.streamed import StreamedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.settings import parse

LANGUAGES = ("de", "fr")
WORDS = "some words that say what it is about and then a few more"
EXTRA = {"mathematics": [f"{a} + {b} = {a + b}" for a in range(30) for b in range(9)]}


def documents(what: str, count: int) -> list[str]:
    words = WORDS.split()
    endings = [" ".join(words[: 3 + i % 9]) for i in range(9)]
    return [f"{what} number {i}: {endings[i % 9]}." for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """general as parquet, code as jsonl, two languages, nothing for mathematics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("hub")
    (root / "general").mkdir()
    for n in range(3):
        rows = [{"text": t} for t in documents(f"general {n}", 200)]
        pq.write_table(pa.Table.from_pylist(rows), root / "general" / f"{n}.parquet")
    for name, column, count in (
        ("code", "content", 150),
        ("de", "text", 60),
        ("fr", "text", 90),
    ):
        lines = [json.dumps({column: t}) + "\n" for t in documents(name, count)]
        (root / f"{name}.jsonl").write_text("".join(lines))
    return root


def config(folder: Path, **more: Any) -> DataConfig:
    streams = {
        "general": [{"path": str(folder / "general"), "buffer": 50}],
        "code": [{"path": str(folder / "code.jsonl"), "column": "content"}],
        "languages": [{"path": str(folder / f"{n}.jsonl")} for n in LANGUAGES],
    }
    streams["languages"][0]["weight"] = 3.0
    return parse(
        DataConfig, {"streams": streams, "sources": {"mathematics": []}, **more}, "test"
    )


def rows_of(
    config: DataConfig,
    tokenizer: R1Tokenizer,
    index: Path | None = None,
    block: int = 16,
) -> StreamedRows:
    feeds, _ = open_feeds(config, 0, EXTRA)
    return StreamedRows(feeds, tokenizer, 32, 5, index, fim=config.fim, block=block)


def same(a: Rows, b: Rows) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_shares_are_of_tokens_and_exact(folder: Path, tokenizer: R1Tokenizer) -> None:
    mix = endless.build(config(folder), tokenizer, 32, 0, EXTRA)
    mix.rows.rows(0, 600)  # three blocks of 256, several epochs of every file
    domains = mix.summary["domains"]
    assert list(domains) == list(ARTICLE)
    assert mix.summary["tokens"] == 3 * 256 * 33
    for name, d in domains.items():
        assert d["asked"] == ARTICLE[name]
        assert d["tokens"] == pytest.approx(d["asked"] * mix.summary["tokens"], abs=1.1)
        assert d["tokens"] == sum(s["tokens"] for s in d["sources"])
    german, french = (s["tokens"] for s in domains["languages"]["sources"])
    assert german / french == pytest.approx(3, rel=0.01)
    assert domains["languages"]["epochs"] >= 1  # endless
    assert domains["mathematics"]["sources"][0]["name"] == "generated"


def test_what_the_summary_counts_is_what_stands_in_the_rows(
    folder: Path, tokenizer: R1Tokenizer
) -> None:
    rows = rows_of(config(folder), tokenizer)
    found = rows.rows(0, 32)
    text = tokenizer.decode(found.ids.flatten().tolist())
    assert all(f"{d} " in text for d in ("general", "code", "de", "fr"))
    assert len(found.document_ids[0].unique()) >= 2  # a row shows several
    total = sum(c.documents for _, c in rows.taken())
    starts = int((found.ids == tokenizer.bos_id).sum())
    assert starts == total


def test_rows_are_whole_documents_in_pieces(
    folder: Path, tokenizer: R1Tokenizer
) -> None:
    """Nothing is lost or doubled: a feed's documents one after the other."""
    only = parse(
        DataConfig,
        {
            "mixture": {"code": 1.0},
            "streams": {
                "code": [
                    {
                        "path": str(folder / "code.jsonl"),
                        "column": "content",
                        "buffer": 7,
                    }
                ]
            },
        },
        "test",
    )
    feeds, _ = open_feeds(only, 0, {})
    rows = StreamedRows(feeds, tokenizer, 32, 5, block=4)
    found = rows.rows(0, 40)
    assert int(found.positions.max()) <= 32
    counted = Counter(found.ids.flatten().tolist())
    wanted: Counter[int] = Counter()
    left = 40 * 33
    for _, _, text in feeds[0].documents(Place()):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id][:left]
        wanted.update(ids)
        left -= len(ids)
        if not left:
            break
    assert counted == wanted


@pytest.mark.parametrize("first", [0, 5, 16, 31, 47, 100])
def test_any_rows_at_any_time(
    folder: Path, tokenizer: R1Tokenizer, first: int, tmp_path: Path
) -> None:
    """A run that was killed asks a new process for its next rows."""
    index = tmp_path / "index.jsonl"
    whole = rows_of(config(folder), tokenizer, index)
    whole.rows(0, 128)
    again = rows_of(config(folder), tokenizer, index)
    assert same(again.rows(first, 20), whole.rows(first, 20))
    without = rows_of(config(folder), tokenizer)  # the file was lost
    assert same(without.rows(first, 20), whole.rows(first, 20))


def test_a_resumed_stream_does_not_read_from_the_start(
    folder: Path,
    tokenizer: R1Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = tmp_path / "index.jsonl"
    rows_of(config(folder), tokenizer, index).rows(0, 96)
    fresh = rows_of(config(folder), tokenizer, index)
    made: list[int] = []
    make = fresh._make
    monkeypatch.setattr(fresh, "_make", lambda b: made.append(b) or make(b))
    fresh.rows(90, 10)
    assert made == [5, 6]


def test_a_kill_in_the_middle_of_a_line(
    folder: Path, tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    index = tmp_path / "index.jsonl"
    whole = rows_of(config(folder), tokenizer, index)
    want = whole.rows(0, 128)
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:3]) + lines[3][:50])
    again = rows_of(config(folder), tokenizer, index)
    assert same(again.rows(0, 128), want)
    assert index.read_text().splitlines(keepends=True) == lines


def test_every_rank_makes_the_same_and_one_writes(
    folder: Path, tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    index = tmp_path / "index.jsonl"
    feeds, _ = open_feeds(config(folder), 0, EXTRA)
    second = StreamedRows(feeds, tokenizer, 32, 5, index, writes=False, block=16)
    first = rows_of(config(folder), tokenizer, tmp_path / "other.jsonl")
    assert same(first.rows(3, 50), second.rows(3, 50))
    assert not index.exists()


def test_held_out_documents_are_never_trained_on(
    folder: Path, tokenizer: R1Tokenizer
) -> None:
    chosen = config(folder, heldout=0.2)
    feeds, held = open_feeds(chosen, 0, EXTRA)
    assert set(held) == set(ARTICLE)
    for feed in feeds:
        if feed.name == "generated":
            continue
        texts = [t for _, _, t in islice(feed.documents(Place()), 200)]
        assert texts and all(hash_place(t) >= 0.2 for t in texts)
        assert not set(texts) & set(held[feed.domain])
    mix = endless.build(chosen, tokenizer, 32, 0, EXTRA)
    assert mix.heldout["code"].bytes == mix.summary["heldout_bytes"]["code"] > 0
    assert mix.heldout["code"].ids[0][0] == tokenizer.bos_id


def test_documents_that_overlap_with_held_out_text_are_dropped(tmp_path: Path) -> None:
    copied = " ".join(f"word{i}" for i in range(40))
    texts = [copied, f"{copied} and one word more", *documents("other", 80)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    values = {
        "mixture": {"general": 1.0},
        "streams": {"general": [{"path": str(path)}]},
    }
    for overlap, dropped in ((1.0, False), (0.2, True)):
        made = parse(DataConfig, {**values, "overlap": overlap}, "test")
        feeds, _ = open_feeds(made, 0, {}, tests=[copied])
        read = {t for _, _, t in islice(feeds[0].documents(Place()), 80)}
        assert (texts[1] not in read) == dropped
        assert texts[5] in read


def test_text_at_hand_that_overlaps_with_a_stream_is_dropped(tmp_path: Path) -> None:
    texts = [
        f"{i} " + " ".join(f"word{i * j}" for j in range(30)) for i in range(1, 41)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    values = {
        "mixture": {"general": 0.5, "mathematics": 0.5},
        "streams": {"general": [{"path": str(path)}]},
        "sources": {"mathematics": []},
        "heldout": 0.2,
        "overlap": 0.5,
    }
    copies = [f"{t} and one word more" for t in texts]
    chosen = parse(DataConfig, values, "test")
    feeds, held = open_feeds(chosen, 0, {"mathematics": copies})
    read = {t for _, _, t in islice(feeds[1].documents(Place()), 80)}
    assert feeds[1].name == "generated" and read < set(copies)
    assert held["general"]
    assert not read & {f"{t} and one word more" for t in held["general"]}


def test_a_failed_reading_is_done_again(
    folder: Path, tokenizer: R1Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds, _ = open_feeds(config(folder), 0, EXTRA)
    want = StreamedRows(feeds, tokenizer, 32, 5, block=16).rows(0, 40)
    read, breaks = feeds[1].read, [True]

    def fails_once(start: Place) -> Iterator[tuple[Place, str]]:
        for number, found in enumerate(read(start)):
            if number == 5 and breaks:
                breaks.clear()
                raise ConnectionError("gone")
            yield found

    feeds[1] = replace(feeds[1], read=fails_once)
    rows = StreamedRows(feeds, tokenizer, 32, 5, block=16)
    with pytest.raises(ConnectionError):
        rows.rows(0, 40)
    assert same(rows.rows(0, 40), want)


def test_fill_in_the_middle_resumes_too(
    folder: Path, tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    from r1lite.data.fim import add_marks

    marked = R1Tokenizer.train(documents("code", 100), 350)
    add_marks(marked)
    chosen = config(folder, fim={"code": 1.0})
    index = tmp_path / "index.jsonl"
    whole = rows_of(chosen, marked, index)
    plain = rows_of(config(folder), marked)
    want = whole.rows(0, 64)
    assert not same(want, plain.rows(0, 64))
    assert same(rows_of(chosen, marked, index).rows(40, 24), whole.rows(40, 24))


def test_texts_at_hand_are_endless_and_resume() -> None:
    texts = documents("a", 7)
    read = read_texts(texts, "a", 0)
    whole = list(islice(read(Place()), 21))
    for epoch in range(3):
        assert sorted(t for _, t in whole[7 * epoch : 7 * epoch + 7]) == sorted(texts)
    assert [t for _, t in whole[:7]] != [t for _, t in whole[7:14]]
    for i in (0, 6, 7, 12):
        assert list(islice(read(whole[i][0]), 5)) == whole[i + 1 : i + 6]


def test_the_tokenizer_reads_each_stream_once(folder: Path) -> None:
    texts = endless.tokenizer_texts(config(folder), EXTRA, 0, 10**9)
    assert len(texts) == len(set(texts)) > 600
    few = endless.tokenizer_texts(config(folder), EXTRA, 0, 5000)
    total = sum(len(t) for t in few)
    assert 5000 <= total < 5600
    general = sum(len(t) for t in few if t.startswith("general"))
    assert general / total == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"streams": {"cod": []}}, r"cod is no domain; did you mean 'code'"),
        ({"streams": {"code": []}}, "code names no dataset"),
        ({"streams": {"code": [{"path": "x", "weight": 0.0}]}}, "weight"),
        ({"streams": {"code": [{"pat": "x"}]}}, "pat"),
        (
            {"streams": {"code": [{"path": "x"}]}, "near_duplicates": 0.8},
            "not searched for repetitions",
        ),
    ],
)
def test_what_it_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(R1Error, match=message):
        parse(DataConfig, values, "test")


def test_a_stream_of_nothing_but_held_out_text_ends(tmp_path: Path) -> None:
    texts = [t for t in documents("x", 400) if hash_place(t) < 0.4]
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    values = {
        "mixture": {"general": 1.0},
        "streams": {"general": [{"path": str(path)}]},
        "heldout": 0.4,
    }
    feeds, _ = open_feeds(parse(DataConfig, values, "test"), 0, {})
    with pytest.raises(R1Error, match="nothing but what is held out"):
        next(feeds[0].documents(Place()))


def test_a_stream_resumed_at_the_end_of_an_epoch_goes_on(tmp_path: Path) -> None:
    """What is left of that epoch holds nothing to train on; the next one does."""
    texts = sorted(documents("x", 40), key=hash_place)
    path = tmp_path / "data.jsonl"
    rest = [texts[0], *texts[20:], *texts[1:3]]  # the first and the last are held out
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in rest))
    values = {
        "mixture": {"general": 1.0},
        "streams": {"general": [{"path": str(path), "buffer": 1}]},
        "heldout": hash_place(texts[3]),
    }
    feeds, _ = open_feeds(parse(DataConfig, values, "test"), 0, {})
    _, _, text = next(feeds[0].documents(Place(0, len(rest) - 2)))
    assert text == rest[1]


def test_the_summary_counts_what_a_killed_run_had_read(
    folder: Path, tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    """Killed between the last step and the summary, a run reads no row again."""
    index = tmp_path / "index.jsonl"
    whole = rows_of(config(folder), tokenizer, index)
    whole.rows(0, 40)
    again = rows_of(config(folder), tokenizer, index)
    assert [c for _, c in again.taken()] == [c for _, c in whole.taken()]
    assert sum(c.tokens for _, c in again.taken()) == 3 * 16 * 33


def test_held_out_text_of_streams_comes_before_that_at_hand(folder: Path) -> None:
    """Text at hand must not take all the room of what is measured."""
    made = [f"{a} times {b} is {a * b}." for a in range(60) for b in range(60)]
    streams = {"mathematics": [{"path": str(folder / "fr.jsonl")}]}
    values = {
        "mixture": {"mathematics": 1.0},
        "streams": streams,
        "heldout": 0.3,
        "heldout_bytes": 1000,
    }
    chosen = parse(DataConfig, values, "test")
    _, held = open_feeds(chosen, 0, {"mathematics": made})
    streamed = [t for t in held["mathematics"] if t.startswith("fr")]
    assert 500 <= sum(map(len, streamed)) < 600  # half of the room
    assert held["mathematics"][: len(streamed)] == streamed
    assert len(held["mathematics"]) > len(streamed)


def test_a_share_too_small_for_a_block(folder: Path, tokenizer: R1Tokenizer) -> None:
    with pytest.raises(R1Error, match="less than two of 33 tokens"):
        rows_of(config(folder), tokenizer, block=1)
    assert np.all(rows_of(config(folder), tokenizer).rows(0, 1).ids.numpy() >= 0)
