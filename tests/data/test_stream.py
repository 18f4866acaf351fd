"""Streaming: every document once an epoch, exact resumption, any number of ranks."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from r1lite.data.stream import Place, StreamConfig, TextStream
from r1lite.errors import R1Error

TEXTS = [f"document {i}" for i in range(47)]


def write(folder: Path, kind: str) -> Path:
    """47 documents in three files; `other` is a column that is no text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for n, (a, b) in enumerate(((0, 20), (20, 21), (21, 47))):
        rows = [{"body": t, "other": i} for i, t in enumerate(TEXTS[a:b])]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{n}.parquet")
        else:
            lines = "".join(json.dumps(r) + "\n" for r in rows)
            (folder / f"{n}.jsonl").write_text(lines)
    return folder


@pytest.fixture(params=["parquet", "jsonl"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "data", request.param)


def config(folder: Path, buffer: int = 10, column: str = "body") -> StreamConfig:
    return StreamConfig(path=str(folder), column=column, buffer=buffer)


def take(stream: TextStream, n: int, start: Place = Place()) -> list[str]:  # noqa: B008
    return [text for _, text in islice(stream.read(start), n)]


def test_every_document_once_an_epoch(folder: Path) -> None:
    two = take(TextStream(config(folder), 0), 94)
    assert sorted(two[:47]) == sorted(two[47:]) == sorted(TEXTS)
    assert two[:47] != two[47:]  # each epoch has its own order
    assert two[:47] != TEXTS
    assert sorted(two[:10]) == sorted(TEXTS[:10])  # a buffer is a block
    assert take(TextStream(config(folder, buffer=1), 0), 47) == TEXTS
    assert take(TextStream(config(folder), 1), 47) != two[:47]


def test_it_resumes_at_any_document(folder: Path) -> None:
    stream = TextStream(config(folder), 0)
    whole = list(islice(stream.read(), 120))
    for i in (0, 1, 9, 10, 11, 45, 46, 47, 93, 100):
        fresh = TextStream(config(folder), 0)
        assert list(islice(fresh.read(whole[i][0]), 15)) == whole[i + 1 : i + 16]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_order(folder: Path, ranks: int) -> None:
    whole = take(TextStream(config(folder), 0), 47)
    parts = [take(TextStream(config(folder), 0, r, ranks), 60) for r in range(ranks)]
    for r, part in enumerate(parts):
        own = whole[r::ranks]
        assert part[: len(own)] == own
    together = [t for r, part in enumerate(parts) for t in part[: len(whole[r::ranks])]]
    assert sorted(together) == sorted(TEXTS)


def test_a_rank_without_documents_does_not_wait_for_ever(folder: Path) -> None:
    assert len(take(TextStream(config(folder), 0, 46, 48), 3)) == 3
    with pytest.raises(R1Error, match=r"no text for rank 47 of 48; .*fewer ranks"):
        take(TextStream(config(folder), 0, 47, 48), 1)


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(R1Error, match=r"^stream.column: 'txt'.*choose one of body"):
        take(TextStream(config(folder, column="txt"), 0), 1)
    with pytest.raises(R1Error, match=r"^stream.column: 'other' holds no text"):
        take(TextStream(config(folder, column="other"), 0), 1)
    with pytest.raises(R1Error, match="rank 2 of 2; give 0 to 1"):
        TextStream(config(folder), 0, 2, 2)
    with pytest.raises(R1Error, match="buffer: 0 is below 1"):
        TextStream(config(folder, buffer=0), 0)
    (folder / "x.txt").write_text("of another kind")
    with pytest.raises(R1Error, match="files of one kind"):
        TextStream(config(folder), 0)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"body": " "}\n' * 3)
    with pytest.raises(R1Error, match="holds no text"):
        take(TextStream(config(blank), 0), 1)


def test_a_name_that_is_not_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("offline\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        R1Error, match=r"cannot be opened on the hub \(offline\); check"
    ):
        TextStream(StreamConfig(path="someone/no-such-data"), 0)
