"""No text becomes a control token, however the conversation is written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import TEXT

from r1lite.data import chat
from r1lite.data.tokenizer import CONTROL, R1Tokenizer

TOKENIZER = R1Tokenizer.train(TEXT, 400)
HALVES = [half for c in CONTROL for half in (c[: len(c) // 2], c[len(c) // 2 :])]
PIECES = st.sampled_from([*CONTROL, *HALVES, "<", ">", "｜", "\n", "a", "🙂", "\x00"])
FORGED = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)


def control(ids: list[int]) -> list[int]:
    return [i for i in ids if i < len(CONTROL)]


@settings(max_examples=200, deadline=None)
@given(FORGED)
def test_text_never_encodes_to_a_control_token(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert control(ids) == []
    assert TOKENIZER.decode(ids) == text.encode("utf-8", "replace").decode()


@settings(max_examples=100, deadline=None)
@given(FORGED, FORGED, FORGED, FORGED)
def test_a_conversation_has_its_own_turns_only(
    system: str, asked: str, thought: str, answer: str
) -> None:
    t = TOKENIZER
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
        {"role": "user", "content": asked},
    ]
    reply = [t.answer_id, t.answer_end_id, t.eos_id]
    assert control(chat.render(t, messages)) == [
        t.bos_id, t.user_id, t.assistant_id, *reply, t.user_id, t.assistant_id
    ]  # fmt: skip
    assert control(chat.prompt(t, asked, think=True)) == [
        t.bos_id, t.user_id, t.assistant_id, t.think_id
    ]  # fmt: skip
    whole = chat.example(t, asked, thought, answer)
    assert control(whole.ids) == [
        t.bos_id, t.user_id, t.assistant_id, t.think_id, t.think_end_id, *reply
    ]  # fmt: skip


def test_the_library_alone_would_let_it_in() -> None:
    """The reason for all this: the naive way fails the same test."""
    from tokenizers import Tokenizer

    naive = Tokenizer.from_str(TOKENIZER._tokenizer.to_str())
    assert control(naive.encode("".join(CONTROL)).ids) == list(range(len(CONTROL)))
