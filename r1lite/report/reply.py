"""A decoded reply as a reader sees it: thought, answer, and what lies around."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Segment:
    """A piece of a reply. `closed` is False for a thought that was cut off."""

    kind: Literal["think", "answer", "text"]
    text: str
    closed: bool = True


_TOKENS = re.compile(r"<｜[^｜<>]{1,40}｜>")
# C0 and C1 but for tab and line feed, directional overrides, lone surrogates.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PIECES = re.compile(
    r"(?P<think><think>(?P<thought>.*?)(?P<end></think>|\Z))"
    r"|(?P<whole><answer>(?P<answer>.*?)(?P<stop></answer>|\Z))",
    re.DOTALL,
)


def segments(reply: str) -> list[Segment]:
    """Split a decoded reply into thought, answer and what lies around them.

    A reply that was made to think starts inside its thought: its text has
    </think> without <think>.
    """
    text = printable(_TOKENS.sub("", reply))
    opened, closed = text.find("<think>"), text.find("</think>")
    if closed >= 0 and not 0 <= opened < closed:
        text = "<think>" + text
    pieces: list[Segment] = []
    place = 0
    for match in _PIECES.finditer(text):
        _plain(pieces, text[place : match.start()])
        if match["think"] is not None:
            done = match["end"] != ""
            pieces.append(Segment("think", match["thought"].strip(), done))
        else:
            done = match["stop"] != ""
            pieces.append(Segment("answer", match["answer"].strip(), done))
        place = match.end()
    _plain(pieces, text[place:])
    return pieces


def _plain(pieces: list[Segment], text: str) -> None:
    if text.strip():
        pieces.append(Segment("text", text.strip()))


def printable(text: str) -> str:
    """The text with U+FFFD for control characters: a byte-level model may write
    those that move a terminal's cursor or turn the direction of a line.
    Line breaks and tabs stay."""
    return _CONTROL.sub("\ufffd", text)
