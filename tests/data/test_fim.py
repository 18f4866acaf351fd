"""Fill in the middle: nothing lost, marks that text cannot write, the rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.data import mixture
from r1lite.data.config import DataConfig
from r1lite.data.fim import FIM, Marks, add_marks, fill_in_the_middle, marks, psm
from r1lite.data.packing import PackedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

TEXT = "def add(a, b):\n    return a + b  # größe 文件\n" * 3


def fresh() -> R1Tokenizer:
    return R1Tokenizer.train([TEXT], 300)


MARKED = fresh()
AT = add_marks(MARKED)


def test_marks_stand_behind_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = fresh()
    before = tokenizer.vocab_size
    ids = tokenizer.encode(TEXT)
    assert add_marks(tokenizer) == Marks(before, before + 1, before + 2)
    assert add_marks(tokenizer) == marks(tokenizer)
    assert tokenizer.vocab_size == before + 3
    assert tokenizer.encode(TEXT) == ids
    tokenizer.save(tmp_path)
    assert marks(R1Tokenizer.load(tmp_path)) == marks(tokenizer)


def test_text_that_spells_a_mark_stays_text(tmp_path: Path) -> None:
    MARKED.save(tmp_path)
    for tokenizer in (MARKED, R1Tokenizer.load(tmp_path)):
        ids = tokenizer.encode("".join(FIM))
        assert not set(ids) & set(AT)
        assert tokenizer.decode(ids) == "".join(FIM)


def test_without_marks() -> None:
    with pytest.raises(R1Error, match=r"^data\.fim: .*add_marks"):
        marks(fresh())
    with pytest.raises(R1Error, match=r"^data.fim.*add_marks"):
        fill_in_the_middle(fresh(), [[40]], 0.5, 0)
    assert fill_in_the_middle(fresh(), [[40]], 0.0, 0) == [[40]]


@given(st.text(max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_the_parts_are_the_text(text: str, a: int, b: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    start, stop = sorted((min(a, len(text)), min(b, len(text))))
    ids = psm(MARKED, text, start, stop, AT)
    assert ids[0] == AT.begin and [ids.count(m) for m in AT] == [1, 1, 1]
    hole, end = ids.index(AT.hole), ids.index(AT.end)
    assert hole < end
    prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 :]
    assert MARKED.decode(prefix) == text[:start]
    assert MARKED.decode(suffix) == text[stop:]
    assert MARKED.decode(middle) == text[start:stop]


def test_the_rate_and_the_seed() -> None:
    documents = [MARKED.encode(TEXT)] * 2000
    done = fill_in_the_middle(MARKED, documents, 0.1, 0)
    changed = [ids for ids in done if ids[0] == AT.begin]
    assert 150 < len(changed) < 250
    assert len({tuple(ids) for ids in changed}) > 140  # cut in many places
    assert all(ids == documents[0] for ids in done if ids[0] != AT.begin)
    assert done == fill_in_the_middle(MARKED, documents, 0.1, 0)
    assert done != fill_in_the_middle(MARKED, documents, 0.1, 1)


def test_the_mixture_reorders_code_only(tokenizer: R1Tokenizer) -> None:
    marked = R1Tokenizer.train([TEXT], 300)
    at = add_marks(marked)
    config = DataConfig(
        mixture={"general": 0.5, "code": 0.5},
        sources={"general": ("pydoc-topics",), "code": ("algorithms",)},
        fim={"code": 0.5},
    )
    made = mixture.build(config, marked, 60_000, 0)
    reordered = [ids for ids in made.documents if ids[0] == at.begin]
    code = made.summary["domains"]["code"]
    assert 0.3 < len(reordered) / code["documents"] < 0.7
    assert all("def " in marked.decode(ids) for ids in reordered[:5])
    assert PackedRows(made.documents, marked, 64, 0).tokens == made.summary["tokens"]
    assert 60_000 - 2 <= made.summary["tokens"] < 60_500
    with pytest.raises(R1Error, match=r"^data.fim"):
        mixture.build(config, tokenizer, 60_000, 0)
    with pytest.raises(ValueError, match="codes is no domain; did you mean 'code'"):
        DataConfig(fim={"codes": 0.1})
