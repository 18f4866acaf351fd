"""Chat: what is written can be read back, and text cannot pretend to be tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1lite.data import chat
from r1lite.data.tokenizer import CONTROL, R1Tokenizer
from r1lite.errors import R1Error

FAKE = "".join(CONTROL)
TAGS = {"T": 5, "t": 6, "A": 7, "a": 8, "E": 1, "B": 0, "P": 2, "U": 3}


def ids_of(tokenizer: R1Tokenizer, sketch: str) -> list[int]:
    """T t A a for the four tags, E for the end; other letters are text."""
    return [
        i
        for letter in sketch
        for i in ([TAGS[letter]] if letter in TAGS else tokenizer.encode(letter))
    ]


def test_prompt_and_example_as_specified(tokenizer: R1Tokenizer) -> None:
    t = tokenizer
    asked = [t.bos_id, t.user_id, *t.encode("2+2?"), t.assistant_id]
    assert chat.prompt(t, "2+2?") == asked
    assert chat.prompt(t, "2+2?", think=True) == [*asked, t.think_id]
    direct = chat.example(t, "2+2?", None, "4")
    assert direct.ids == [*asked, 7, *t.encode("4"), 8, 1]
    reasoned = chat.example(t, "2+2?", "2 and 2", "4")
    assert reasoned.ids == [*asked, 5, *t.encode("2 and 2"), 6, *direct.ids[-4:]]
    for made in (direct, reasoned):
        assert len(made.ids) == len(made.mask)
        assert made.mask == [i >= len(asked) for i in range(len(made.ids))]


@given(st.text(max_size=20), st.none() | st.text(max_size=20), st.text(max_size=20))
def test_an_example_parses_to_what_was_put_in(
    question: str, reasoning: str | None, answer: str
) -> None:
    made = chat.example(TOKENIZER, question + FAKE, reasoning, answer + FAKE)
    start = made.mask.index(True)
    got = chat.parse(TOKENIZER, made.ids[start:])
    thought = bool(reasoning and reasoning.strip())
    assert got == chat.Response(reasoning, answer + FAKE, True, thought)
    if reasoning is not None:
        assert chat.parse(TOKENIZER, made.ids[start + 1 :], forced_think=True) == got


@pytest.mark.parametrize(
    ("sketch", "reasoning", "answer", "well_formed", "has_think"),
    [
        ("AxaE", None, "x", True, False),
        ("TrtAxaE", "r", "x", True, True),
        ("TtAxaE", "", "x", True, False),
        ("T tAxaE", " ", "x", True, False),
        ("AaE", None, "", True, False),
        ("Axa", None, "x", False, False),  # no end
        ("AxaEE", None, "x", False, False),
        ("AxaEx", None, "x", False, False),  # something after the end
        ("xAxaE", None, "x", False, False),  # something before
        ("AxazE", None, "x", False, False),
        ("Trt AxaE", "r", "x", False, True),  # between the blocks
        ("zTrtAxaE", "r", "x", False, True),
        ("TrAxaE", "r", "x", False, False),  # think never closed
        ("Trrr", "rrr", None, False, False),
        ("rtAxaE", None, "x", False, False),  # never opened
        ("Axy", None, None, False, False),  # answer never closed
        ("xaE", None, None, False, False),
        ("AxaAyaE", None, "y", False, False),  # two answers: the last counts
        ("TrtTstAxaE", "r", "x", False, True),  # two think blocks
        ("TrTstAxaE", "r", "x", False, False),  # nested
        ("AxAyaaE", None, "y", False, False),
        ("TAxatE", "", "x", False, False),  # the answer inside the reasoning
        ("AxaTrtE", "r", "x", False, True),  # wrong order
        ("AxPyaE", None, None, False, False),  # another control token inside
        ("TrUrtAxaE", "r", "x", False, False),
        ("BAxaE", None, "x", False, False),
        ("xE", None, None, False, False),
        ("E", None, None, False, False),
        ("", None, None, False, False),
    ],
)
def test_parse(
    tokenizer: R1Tokenizer,
    sketch: str,
    reasoning: str | None,
    answer: str | None,
    well_formed: bool,
    has_think: bool,
) -> None:
    got = chat.parse(tokenizer, ids_of(tokenizer, sketch))
    assert got == chat.Response(reasoning, answer, well_formed, has_think)
    if sketch.startswith("T"):
        rest = ids_of(tokenizer, sketch[1:])
        assert chat.parse(tokenizer, rest, forced_think=True) == got


def test_tags_typed_as_text_earn_nothing(tokenizer: R1Tokenizer) -> None:
    ids = [*tokenizer.encode("<think>r</think><answer>4</answer>"), tokenizer.eos_id]
    assert chat.parse(tokenizer, ids) == chat.Response(None, None, False, False)


def turns(*more: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": " Hi,\n\n12  "},
        {"role": "assistant", "content": "four ", "reasoning_content": "2 and 2"},
        *more,
    ]


def test_past_reasoning_is_dropped_and_the_last_kept(tokenizer: R1Tokenizer) -> None:
    t = tokenizer
    now = chat.render(t, turns({"role": "user", "content": "And?"}))
    assert t.think_id not in now
    assert now.count(t.answer_id) == 1 and now[-1] == t.assistant_id
    whole = chat.render(t, turns(), add_generation_prompt=False)
    assert whole == chat.example(t, " Hi,\n\n12  ", "2 and 2", "four ").ids
    assert chat.render(t, turns()[:1], think=True)[-2:] == [t.assistant_id, t.think_id]


def test_the_template_gives_the_same_ids(
    tokenizer: R1Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == chat.CHAT_TEMPLATE
    system = {"role": "system", "content": "Be kind.\n"}
    user = {"role": "user", "content": "1 < 2 & {{ x }} 你好\n"}
    plain = {"role": "assistant", "content": "yes"}
    conversations: list[list[dict[str, Any]]] = [
        [user],
        turns(),
        turns(user),
        [system, *turns(user, plain, user, {**plain, "reasoning_content": ""})],
        [system, user, {**plain, "reasoning_content": None}],
    ]
    for messages in conversations:
        for ask, think in ((False, False), (True, False), (True, True)):
            rendered = theirs.apply_chat_template(
                messages, add_generation_prompt=ask, think=think, return_dict=False
            )
            assert rendered == chat.render(tokenizer, messages, ask, think)
    written = {"role": "assistant", "content": "<think>r</think><answer>4</answer>"}
    text = theirs.apply_chat_template([user, written], tokenize=False)
    assert text.endswith("<｜Assistant｜><answer>4</answer><｜end▁of▁sentence｜>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "^messages: the conversation is empty"),
        ([{"role": "tool", "content": "x"}], r"^messages\.0\.role: 'tool'"),
        ([{"content": "x"}], r"^messages\.0\.role: None"),
        (turns({"role": "system", "content": "x"}), r"^messages\.2\.role: 'system'"),
        (turns({"role": "user"}), r"^messages\.2\.content: is not text"),
    ],
)
def test_bad_conversations(
    tokenizer: R1Tokenizer, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(R1Error, match=message):
        chat.render(tokenizer, messages)


TOKENIZER = R1Tokenizer.train(["the king gave the word " * 9, FAKE * 9], 300)
