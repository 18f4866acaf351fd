"""Log-probabilities in OpenAI's two shapes, for chat and for plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.serving.types import TokenLogprob


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a letter; this undoes it.

    Printable Latin-1 stands for itself, the other bytes for U+0100 upwards in
    order (GPT-2's table).
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {chr(b): b for b in plain}
    return table | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: R1Tokenizer, token: int) -> bytes:
    """The bytes a token stands for; of a control token, its name's."""
    name = str(tokenizer.backend.id_to_token(token))
    if token < len(tokenizer.CONTROL):
        return name.encode()
    table = _bytes_of_letters()
    return bytes(table[letter] for letter in name)


def _entry(tokenizer: R1Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = token_bytes(tokenizer, token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot happen."""
    return max(logprob, -9999.0)


def chat_logprobs(
    tokenizer: R1Tokenizer, scores: Sequence[TokenLogprob]
) -> list[dict[str, Any]]:
    """An entry a token, reasoning and tags too; `top_logprobs` best first."""
    return [
        {
            **_entry(tokenizer, s.token_id, s.logprob),
            "top_logprobs": [_entry(tokenizer, t, p) for t, p in s.top],
        }
        for s in scores
    ]


def text_logprobs(
    tokenizer: R1Tokenizer, scores: Sequence[TokenLogprob], offset: int
) -> dict[str, Any]:
    """Four parallel lists; `text_offset` counts characters from `offset`."""
    tokens = [_entry(tokenizer, s.token_id, 0.0)["token"] for s in scores]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [
        {_entry(tokenizer, t, 0.0)["token"]: _finite(p) for t, p in s.top}
        for s in scores
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(s.logprob) for s in scores],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
