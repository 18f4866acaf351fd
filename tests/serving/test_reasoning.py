"""Reasoning taken apart while it streams, however it arrives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving import tokenizer

from r1lite.data import chat
from r1lite.serving.reasoning import ReasoningParser
from r1lite.serving.text import TextStream, byte_table

T = tokenizer()
TABLE = byte_table(T)
THINK, THINK_END, ANSWER, ANSWER_END = 5, 6, 7, 8
Pieces = list[tuple[str, str]]


def ids(*parts: str | int) -> list[int]:
    """Text and control ids in a row."""
    out: list[int] = []
    for part in parts:
        out += [part] if isinstance(part, int) else T.encode(part)
    return out


def split(
    tokens: list[int], thinking: bool = False, stop: tuple[str, ...] = ()
) -> Pieces:
    """Feed token by token as the engine does: text held back, then let go."""
    parser, stream = ReasoningParser(TABLE, thinking), TextStream(TABLE, stop)
    pieces: Pieces = []
    for token in tokens:
        pieces += parser.feed([token], stream.feed(token))
        if stream.stopped:
            return merged(pieces)
    return merged(pieces + parser.feed([], stream.finish()))


def merged(pieces: Pieces) -> Pieces:
    """Neighbours of one part joined."""
    out: Pieces = []
    for part, text in pieces:
        assert text
        if out and out[-1][0] == part:
            text = out.pop()[1] + text
        out.append((part, text))
    return out


def test_think_block_then_answer() -> None:
    tokens = ids(THINK, "7+1=8", THINK_END, ANSWER, "8", ANSWER_END, 1)
    assert split(tokens[:-1]) == [("reasoning", "7+1=8"), ("content", "8")]


def test_think_in_the_prompt() -> None:
    tokens = ids("7+1=8", THINK_END, ANSWER, "8", ANSWER_END)
    assert split(tokens, thinking=True) == [("reasoning", "7+1=8"), ("content", "8")]
    assert split(tokens) == [("content", "7+1=88")]


def test_a_block_that_never_closes_is_reasoning() -> None:
    assert split(ids(THINK, "so, then")) == [("reasoning", "so, then")]
    assert split(ids("so"), thinking=True) == [("reasoning", "so")]


def test_an_answer_closes_the_block_too() -> None:
    tokens = ids(THINK, "hm", ANSWER, "4", ANSWER_END)
    assert split(tokens) == [("reasoning", "hm"), ("content", "4")]


def test_a_second_block_and_stray_tags() -> None:
    tokens = ids(THINK_END, "a", THINK, "b", THINK_END, "c", 3, "d", THINK, "e")
    want = [("content", "a"), ("reasoning", "b"), ("content", "cd"), ("reasoning", "e")]
    assert split(tokens) == want


def test_tags_spelled_out_are_text() -> None:
    """The model may repeat what a user typed; that must move nothing."""
    tokens = ids("say <think>x</think>", ANSWER, "<answer></think>", ANSWER_END)
    assert split(tokens) == [("content", "say <think>x</think><answer></think>")]
    tokens = ids("<think></think>", THINK_END, "<think>")
    assert split(tokens, thinking=True) == [
        ("reasoning", "<think></think>"),
        ("content", "<think>"),
    ]


def test_a_character_cut_by_a_tag() -> None:
    first = T.encode("🙂")[0]
    assert len(T.encode("🙂")) > 1
    want = [("reasoning", "\ufffd"), ("content", "ok")]
    assert split([THINK, first, THINK_END, *T.encode("ok")]) == want


def test_a_tag_whose_name_arrives_in_two_pieces() -> None:
    parser = ReasoningParser(TABLE)
    tokens = ids(THINK, "ab", THINK_END, "c")
    assert parser.feed(tokens, "<thi") == []
    assert parser.feed([], "nk>a") == [("reasoning", "a")]
    assert parser.feed([], "b</") == [("reasoning", "b")]
    assert parser.feed([], "think>") == []
    assert parser.feed([], "c") == [("content", "c")]
    assert parser.reasoning_tokens == len(T.encode("ab"))


def test_reasoning_tokens_are_those_inside() -> None:
    parser = ReasoningParser(TABLE, thinking=True)
    parser.feed(ids("1", "2", THINK_END, ANSWER, "3", ANSWER_END), "")
    assert parser.reasoning_tokens == 2


@pytest.mark.parametrize("stop", ["</think>", "think>", "+1", "8<"])
def test_a_stop_string_cuts_the_text_and_not_the_parts(stop: str) -> None:
    tokens = ids(THINK, "7+1=8", THINK_END, ANSWER, "8", ANSWER_END)
    whole = T.decode(tokens)
    text = "".join(t for _, t in split(tokens, stop=(stop,)))
    before = whole[: whole.index(stop)]
    for name in ("<think>", "</think>", "<answer>"):
        before = before.replace(name, "")
    assert text == before.removesuffix("</").removesuffix("<")


TOKENS = st.lists(
    st.one_of(
        st.sampled_from([THINK, THINK_END, ANSWER, ANSWER_END, 2, 3]),
        st.integers(9, T.vocab_size - 1),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(TOKENS, st.booleans(), st.data())
def test_however_it_is_cut_the_parts_are_the_same(
    tokens: list[int], thinking: bool, data: st.DataObject
) -> None:
    """Tokens come in groups, and their text with them or any time after."""
    want = split(tokens, thinking)
    stream = TextStream(TABLE)
    ready = [*itertools.accumulate(len(stream.feed(t)) for t in tokens)]
    whole = stream_text(tokens)
    parser = ReasoningParser(TABLE, thinking)
    pieces: Pieces = []
    fed = said = 0
    while fed < len(tokens):
        now = data.draw(st.integers(fed + 1, len(tokens)))
        until = data.draw(st.integers(said, max(said, ready[now - 1])))
        pieces += parser.feed(tokens[fed:now], whole[said:until])
        fed, said = now, until
    pieces += parser.feed([], whole[said:])
    assert merged(pieces) == want
    names = sum(len(T.CONTROL[t]) for t in tokens if t < len(T.CONTROL))
    assert sum(len(t) for _, t in want) == len(whole) - names


def stream_text(tokens: list[int]) -> str:
    """The engine's text of all tokens."""
    stream = TextStream(TABLE)
    return "".join([*map(stream.feed, tokens), stream.finish()])


@settings(max_examples=50)
@given(st.text(max_size=12), st.text(max_size=12))
def test_it_agrees_with_the_parser_of_whole_answers(thought: str, said: str) -> None:
    example = chat.example(T, "q", thought, said)
    tokens = [t for t, target in zip(example.ids, example.mask, strict=True) if target]
    parsed = chat.parse(T, tokens)
    parts = dict(split(tokens[:-1]))
    assert parts.get("reasoning", "") == (parsed.reasoning or "")
    assert parts.get("content", "") == (parsed.answer or "")
