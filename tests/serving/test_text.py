"""Tokens to text as they come."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.serving import tokenizer

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.serving.text import TextStream, byte_table

T = tokenizer()
TABLE = byte_table(T)


def parts(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What comes with every token, then what was held back; whether it stopped."""
    stream, made = TextStream(TABLE, stop), []
    for token in tokens:
        made.append(stream.feed(token))
        if stream.stopped:
            break
    return [*made, stream.finish()], stream.stopped


@given(st.lists(st.integers(0, T.vocab_size - 1), max_size=30))
def test_the_pieces_are_the_text_of_all_tokens(tokens: list[int]) -> None:
    whole = b"".join(TABLE[t] for t in tokens).decode("utf-8", "replace")
    assert "".join(parts(tokens)[0]) == whole


@given(st.text(max_size=30))
@example("né 🙂 日本")
def test_text_survives_and_no_piece_is_half_a_character(text: str) -> None:
    made, _ = parts(T.encode(text))
    assert "".join(made) == text
    assert not any("\ufffd" in piece for piece in made) or "\ufffd" in text


def test_a_control_token_is_its_name() -> None:
    made, _ = parts([R1Tokenizer.think_id, *T.encode("a")])
    assert "".join(made) == "<think>a"


def test_an_unfinished_character_is_said_at_the_end() -> None:
    (first, *_) = T.encode("🙂")
    assert parts([first]) == (["", "\ufffd"], False)


def test_unknown_ids_are_no_text() -> None:
    """A model may have more ids than its tokenizer."""
    assert parts([T.vocab_size + 5]) == (["", ""], False)


@settings(max_examples=200)
@given(
    text=st.text("ab=\n1", max_size=20),
    stop=st.lists(st.text("ab=\n1", min_size=1, max_size=4), max_size=3),
)
def test_the_first_stop_ends_the_text_wherever_tokens_break(
    text: str, stop: list[str]
) -> None:
    """One letter at a time is the worst case: every stop crosses borders."""
    tokens = [t for letter in text for t in T.encode(letter)]
    made, stopped = parts(tokens, tuple(stop))
    # The place of the stop that is complete first; the earlier one if two are.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert ("".join(made), stopped) == (text, False)
        return
    seen = text[: min(ends)]
    cut = min(seen.find(s) for s in stop if s in seen)
    assert ("".join(made), stopped) == (text[:cut], True)


@pytest.mark.parametrize("said", ["</thin", "</thing"])
def test_what_only_began_like_a_stop_is_said_in_the_end(said: str) -> None:
    tokens = [t for letter in said for t in T.encode(letter)]
    made, stopped = parts(tokens, ("</think>",))
    assert "".join(made) == said and not stopped
    assert made[0] == ""  # held back while it could have been one
