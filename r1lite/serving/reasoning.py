"""Reasoning and answer taken apart while they stream.

A tag is a control token, so it is found by its id: `<think>` spelled out in
plain letters, as a model may repeat it from its prompt, is text and stays
text. The engine's text says where a tag's name stands; the ids say whether it
is one.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Literal

from r1lite.data.tokenizer import R1Tokenizer

Part = Literal["reasoning", "content"]


class ReasoningParser:
    """Feed it each delta of one sample; it gives the pieces in order.

    In a think block until `</think>` or, as R1's format has nothing else to
    follow, `<answer>`; a block that never closes is reasoning to its end.
    Names of control tokens are in neither part.

    thinking: the prompt ended with `<think>`.
    """

    def __init__(self, tokenizer: R1Tokenizer, thinking: bool = False) -> None:
        self._tokenizer = tokenizer
        self._part: Part = "reasoning" if thinking else "content"  # of the text
        self._writing = thinking  # of the tokens, which may be ahead of the text
        self._segment: list[int] = []  # ids since the last control token
        self._known = 0  # characters up to the last control token
        self._tags: deque[tuple[int, int]] = deque()  # (first character, id)
        self._seen = 0  # characters that came so far
        self.reasoning_tokens = 0

    def feed(self, token_ids: Sequence[int], text: str) -> list[tuple[Part, str]]:
        """The new text as [(part, piece)]; neighbours differ, none is empty."""
        for token in token_ids:
            self._read(token)
        pieces: list[tuple[Part, str]] = []
        begin, end = self._seen, self._seen + len(text)
        while self._seen < end:
            stop = min(self._next_border(), end)
            piece = text[self._seen - begin : stop - begin]
            if not self._in_tag():
                if pieces and pieces[-1][0] == self._part:
                    piece = pieces.pop()[1] + piece
                pieces.append((self._part, piece))
            self._seen = stop
            self._leave_tag()
        return pieces

    def _read(self, token: int) -> None:
        """Note where a control token's name stands in the text."""
        t = self._tokenizer
        if token >= len(t.CONTROL):
            self._segment.append(token)
            self.reasoning_tokens += self._writing
            return
        start = self._known + len(t.decode(self._segment))
        self._segment = []
        self._known = start + len(t.CONTROL[token])
        self._tags.append((start, token))
        self._writing = _after(t, token, self._writing)

    def _in_tag(self) -> bool:
        return bool(self._tags) and self._seen >= self._tags[0][0]

    def _next_border(self) -> int:
        """Where the current run of text, or of a tag's name, ends at the latest."""
        if not self._tags:
            return sys.maxsize
        start, token = self._tags[0]
        return start if self._seen < start else start + len(self._name(token))

    def _leave_tag(self) -> None:
        while self._tags:
            start, token = self._tags[0]
            if self._seen < start + len(self._name(token)):
                return
            self._tags.popleft()
            thinking = _after(self._tokenizer, token, self._part == "reasoning")
            self._part = "reasoning" if thinking else "content"

    def _name(self, token: int) -> str:
        return self._tokenizer.CONTROL[token]


def _after(t: R1Tokenizer, token: int, thinking: bool) -> bool:
    """Whether text after this control token is reasoning."""
    if token == t.think_id:
        return True
    return thinking and token not in (t.think_end_id, t.answer_id)
