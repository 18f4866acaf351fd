"""Packing: every token once an epoch, no leaks, the same rows after a resume."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1lite.data.chat import Example
from r1lite.data.packing import PADDING, PackedRows, pack_examples
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

# Document d holds the ids 100 d, 100 d + 1, …: each token says where it is from.
DOCUMENTS = [[100 * d + i for i in range(n)] for d, n in enumerate([5, 1, 30, 9], 1)]
TOKENS = 5 + 1 + 30 + 9 + 2 * 4


def packed(tokenizer: R1Tokenizer, seq_len: int = 7, seed: int = 3) -> PackedRows:
    return PackedRows(DOCUMENTS, tokenizer, seq_len, seed)


def test_rows_are_the_documents_in_turn(tokenizer: R1Tokenizer) -> None:
    rows = packed(tokenizer, seq_len=TOKENS - 1).batch(0, 1)
    assert rows.ids.shape == rows.document_ids.shape == rows.positions.shape
    assert rows.ids.shape == (1, TOKENS) and rows.ids.dtype == torch.int64
    found = []
    for i in rows.document_ids[0].unique():
        here = rows.document_ids[0] == i
        bos, *tokens, eos = rows.ids[0][here].tolist()
        assert (bos, eos) == (tokenizer.bos_id, tokenizer.eos_id)
        assert rows.positions[0][here].tolist() == list(range(len(tokens) + 2))
        found.append(tokens)
    assert sorted(found) == DOCUMENTS and len(found) == len(DOCUMENTS)


@pytest.mark.parametrize("seq_len", [1, 7, 52, 200])
def test_every_token_once_an_epoch(tokenizer: R1Tokenizer, seq_len: int) -> None:
    source = packed(tokenizer, seq_len)
    assert source.tokens == TOKENS
    needed = -(-3 * TOKENS // (seq_len + 1))
    stream = source.batch(0, needed).ids.flatten().tolist()
    expected = sorted([i for d in DOCUMENTS for i in (0, *d, 1)])
    epochs = [stream[e * TOKENS : (e + 1) * TOKENS] for e in range(3)]
    assert [sorted(e) for e in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]  # each epoch has its own order


def test_a_document_never_leaks_into_another(tokenizer: R1Tokenizer) -> None:
    rows = packed(tokenizer).batch(0, 21)  # three epochs in rows of 8
    seen: dict[int, set[int]] = {}
    for ids, documents, positions in zip(
        rows.ids.tolist(),
        rows.document_ids.tolist(),
        rows.positions.tolist(),
        strict=True,
    ):
        for at, (i, d) in enumerate(zip(ids, documents, strict=True)):
            if i >= 100:
                seen.setdefault(d, set()).add(i // 100)
            first = at == 0 or documents[at - 1] != d
            assert positions[at] == (0 if first else positions[at - 1] + 1)
            assert (i == tokenizer.bos_id) <= first
    assert all(len(origins) == 1 for origins in seen.values())
    assert len(seen) >= 3 * len(DOCUMENTS)  # an epoch's copy is a new document


@given(st.integers(0, 400), st.integers(1, 5), st.integers(1, 40))
def test_any_step_of_a_fresh_source_continues(
    step: int, batch: int, seq_len: int
) -> None:
    used, fresh = packed(TOKENIZER, seq_len), packed(TOKENIZER, seq_len)
    used.batch(0, 3)
    a, b = used.batch(step, batch), fresh.batch(step, batch)
    ones = [packed(TOKENIZER, seq_len).batch(step * batch + i, 1) for i in range(batch)]
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.document_ids, b.document_ids)
    assert torch.equal(a.positions, b.positions)
    assert torch.equal(a.ids, torch.cat([o.ids for o in ones]))


def test_the_seed_changes_the_order(tokenizer: R1Tokenizer) -> None:
    orders = {
        tuple(packed(tokenizer, 52, s).batch(0, 1).ids[0].tolist()) for s in range(9)
    }
    assert len(orders) > 4


def test_no_documents(tokenizer: R1Tokenizer) -> None:
    with pytest.raises(R1Error, match=r"^data: .*add a source"):
        PackedRows([], tokenizer, 8, 0)


def made(length: int, first: int) -> Example:
    return Example(list(range(first, first + length)), [True] * length)


@given(st.lists(st.integers(1, 17), min_size=1, max_size=40), st.integers(0, 9))
def test_examples_stay_whole(lengths: list[int], seed: int) -> None:
    examples = [made(n, 100 * i + 10) for i, n in enumerate(lengths)]
    rows = pack_examples(examples, 16, seed)
    assert rows.ids.size(1) <= 17
    for i, e in enumerate(examples):
        here = rows.document_ids == i
        assert here.any(1).sum() == 1  # one row holds it
        assert rows.ids[here].tolist() == e.ids
        assert rows.positions[here].tolist() == list(range(len(e.ids)))
        assert rows.mask[here].tolist() == [False, *e.mask[1:]]
    padding = rows.document_ids == PADDING
    assert int((~padding).sum()) == sum(lengths)
    assert (rows.ids[padding] == R1Tokenizer.pad_id).all()
    assert not rows.mask[padding].any()
    assert rows.ids.size(0) <= 2 * -(-sum(lengths) // 17)  # at most one half-empty
    again = pack_examples(examples, 16, seed)
    assert torch.equal(rows.ids, again.ids)


def test_few_rows_and_no_wider_than_needed() -> None:
    rows = pack_examples([made(n, 50) for n in (9, 8, 5, 5, 4, 3)], 16, 0)
    assert rows.ids.shape == (2, 17)  # 9+8 and 5+5+4+3: nothing wasted
    assert pack_examples([made(3, 50)], 16, 0).ids.shape == (1, 3)


def test_bad_examples() -> None:
    with pytest.raises(R1Error, match=r"^examples: there is nothing"):
        pack_examples([], 16, 0)
    with pytest.raises(R1Error, match=r"^examples\.1: has 18 tokens.*at least 17"):
        pack_examples([made(3, 9), made(18, 9)], 16, 0)
    with pytest.raises(R1Error, match=r"^examples\.0: has 2 ids and 1 mask"):
        pack_examples([Example([1, 2], [True])], 16, 0)


TOKENIZER = R1Tokenizer.train(["a"], 265)
