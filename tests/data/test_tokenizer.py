"""The tokenizer: any text round-trips, no text gives a control id."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import TEXT

from r1lite.data.tokenizer import CONTROL, SMALLEST, R1Tokenizer
from r1lite.errors import R1Error

PIECES = [*CONTROL, "<", "think", "｜", "▁", "Ġ", " ", "\n", "7", "<th", "ink>"]
SPICED = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=8)


def test_control_ids_are_fixed(tokenizer: R1Tokenizer) -> None:
    t = tokenizer
    named = [t.bos_id, t.eos_id, t.pad_id, t.user_id, t.assistant_id]
    named += [t.think_id, t.think_end_id, t.answer_id, t.answer_end_id]
    assert named == list(range(9))
    assert [t.decode([i]) for i in named] == list(CONTROL)
    assert t.decode(named, control=False) == ""
    assert t.vocab_size == 400


@settings(max_examples=300)
@given(SPICED.map("".join))
def test_text_round_trips_and_gives_no_control_id(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids, control=False) == text
    assert all(len(CONTROL) <= i < TOKENIZER.vocab_size for i in ids)


def test_every_byte_and_every_plane_is_encodable(tokenizer: R1Tokenizer) -> None:
    text = "".join(map(chr, [*range(0x800), 0xFFFD, 0xFFFF, 0x1F600, 0x10FFFF]))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"  # not UTF-8
    assert tokenizer.encode("") == []


def test_every_digit_is_its_own_token(tokenizer: R1Tokenizer) -> None:
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("x = 2024, 12a34")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("20241234")
    # A digit that needs several bytes is split, but never joined to the next.
    assert tokenizer.encode("٣٤") == tokenizer.encode("٣") + tokenizer.encode("٤")


def test_merges_were_learnt(tokenizer: R1Tokenizer) -> None:
    assert len(tokenizer.encode("the king gave the word")) < 8


def test_batch_equals_one_by_one(tokenizer: R1Tokenizer) -> None:
    texts = ["a b", "", "<think>", "文件 12"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


def test_training_gives_the_same_bytes_in_another_process(
    tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    code = (
        "import sys, json; from r1lite.data.tokenizer import R1Tokenizer;"
        "R1Tokenizer.train(json.load(sys.stdin), 400).save(sys.argv[1])"
    )
    there, here = tmp_path / "there", tmp_path / "here"
    command = [sys.executable, "-c", code, str(there)]
    subprocess.run(command, input=json.dumps(TEXT), text=True, check=True)
    tokenizer.save(here)
    for file in sorted(here.iterdir()):
        assert file.read_bytes() == (there / file.name).read_bytes()
    assert len(list(here.iterdir())) == 3


def test_saved_and_loaded_is_the_same(tokenizer: R1Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = R1Tokenizer.load(path)
        text = "The 12 <think> kings｜ of <｜User｜> café"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize("model_type", [None, "deepseek_v3"])
def test_transformers_reads_it(
    tokenizer: R1Tokenizer, tmp_path: Path, model_type: str | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if model_type:  # a whole model's folder, as `save_pretrained` writes it
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXT[:3], " 12  x\n\n\ty", "don't 3.14 émigré 你好 \U0001f600"]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert theirs.convert_tokens_to_ids(list(CONTROL)) == list(range(9))
    assert len(theirs) == tokenizer.vocab_size


def test_bad_input_names_the_remedy(tokenizer: R1Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(R1Error, match=rf"^tokenizer\.vocab_size: .* {SMALLEST}$"):
        R1Tokenizer.train(TEXT, SMALLEST - 1)
    with pytest.raises(R1Error, match=r"give more text"):
        R1Tokenizer.train([], 300)
    with pytest.raises(R1Error, match=r"missing; give a saved model"):
        R1Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(R1Error, match=r"is damaged") as caught:
        R1Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<think>", "<thunk>"))
    with pytest.raises(R1Error, match=r"<think> does not have id 5"):
        R1Tokenizer.load(tmp_path)


TOKENIZER = R1Tokenizer.train(TEXT, 400)  # hypothesis wants no fixture per example
