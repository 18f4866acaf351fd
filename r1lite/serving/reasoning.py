"""Reasoning and answer taken apart while they stream.

A tag is a control token, so it is found by its id: `<think>` spelled out in
plain letters, as a model may repeat it from its prompt, is text and stays
text. The ids say which tags there are, their bytes where in the text they
stand, and the text may come later than its tokens.
"""

from __future__ import annotations

import codecs
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

    table: the bytes of every token (`byte_table`).
    thinking: the prompt ended with `<think>`.
    """

    def __init__(self, table: Sequence[bytes], thinking: bool = False) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._thinking = thinking  # where the text stands
        self._ahead = thinking  # where the tokens stand
        self._known = 0  # characters of all tokens so far
        self._seen = 0  # characters of the text so far
        self._tags: deque[tuple[int, int, bool]] = deque()  # see _read
        self.reasoning_tokens = 0

    def feed(self, token_ids: Sequence[int], text: str) -> list[tuple[Part, str]]:
        """The new text as [(part, piece)]; neighbours differ, none is empty."""
        for token in token_ids:
            self._read(token)
        pieces: list[tuple[Part, str]] = []
        first, end = self._seen, self._seen + len(text)
        while self._seen < end:
            start, stop, after = self._tags[0] if self._tags else NO_TAG
            border = min(start if self._seen < start else stop, end)
            if self._seen < start:
                part: Part = "reasoning" if self._thinking else "content"
                piece = text[self._seen - first : border - first]
                if pieces and pieces[-1][0] == part:
                    piece = pieces.pop()[1] + piece
                pieces.append((part, piece))
            self._seen = border
            if border == stop:
                self._thinking = after
                self._tags.popleft()
        return pieces

    def _read(self, token: int) -> None:
        """Note a tag: the place of its name in the text, and what it opens."""
        piece = self._table[token] if token < len(self._table) else b""
        self._known += len(self._decoder.decode(piece))
        if token < len(R1Tokenizer.CONTROL):
            self._ahead = _after(token, self._ahead)
            name = len(R1Tokenizer.CONTROL[token])
            self._tags.append((self._known - name, self._known, self._ahead))
        else:
            self.reasoning_tokens += self._ahead


NO_TAG = (sys.maxsize, sys.maxsize, False)


def _after(token: int, thinking: bool) -> bool:
    """Whether what follows this control token is reasoning."""
    if token == R1Tokenizer.think_id:
        return True
    closing = (R1Tokenizer.think_end_id, R1Tokenizer.answer_id)
    return thinking and token not in closing
