"""Tokens to text as they come: whole characters only, and never past a stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from r1lite.data.tokenizer import CONTROL, R1Tokenizer


def byte_table(tokenizer: R1Tokenizer) -> list[bytes]:
    """The bytes of every token; a control token is its name.

    A byte-level token is written in 256 printable stand-ins for bytes; decoding
    each stand-in alone would lose those that are part of a character.
    """
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    stand_in = {char: byte for byte, char in enumerate(_stand_ins())}
    for token, i in vocabulary.items():
        if i < len(CONTROL):
            table[i] = token.encode()
        else:
            table[i] = bytes(stand_in[char] for char in token)
    return table


def _stand_ins() -> list[str]:
    """The character for each byte, as GPT-2 chose them: itself if it prints,
    else the next one from 256 on."""
    chars, next_free = [], 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            chars.append(chr(byte))
        else:
            chars.append(chr(next_free))
            next_free += 1
    return chars


class TextStream:
    """The text of one sample, token by token.

    Bytes wait until they make a character; characters wait while they may be
    the beginning of a stop string.
    """

    def __init__(self, table: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self.table, self.stop = table, stop
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that is certain now; sets `stopped` at a stop string."""
        piece = self.table[token] if token < len(self.table) else b""
        self.held += self.decoder.decode(piece)
        return self._release()

    def finish(self) -> str:
        """What was held back; a character that stayed incomplete is U+FFFD."""
        if self.stopped:
            return ""
        self.held += self.decoder.decode(b"", final=True)
        text = self._release()
        if not self.stopped:
            text, self.held = text + self.held, ""
        return text

    def _release(self) -> str:
        if not self.stop:
            text, self.held = self.held, ""
            return text
        places = [at for s in self.stop if (at := self.held.find(s)) >= 0]
        if places:
            self.stopped = True
            text, self.held = self.held[: min(places)], ""
            return text
        keep = max(_overlap(self.held, s) for s in self.stop)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
