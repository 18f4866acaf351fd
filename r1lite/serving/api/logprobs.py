"""Log-probabilities in OpenAI's two shapes, for chat and for plain completions.

`table` holds the bytes of every token, as `byte_table` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r1lite.serving.types import TokenLogprob


def _entry(table: Sequence[bytes], token: int, logprob: float) -> dict[str, Any]:
    raw = table[token] if token < len(table) else b""
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot happen."""
    return max(logprob, -9999.0)


def chat_logprobs(
    table: Sequence[bytes], scores: Sequence[TokenLogprob]
) -> list[dict[str, Any]]:
    """An entry a token, reasoning and tags too; `top_logprobs` best first."""
    return [
        {
            **_entry(table, s.token_id, s.logprob),
            "top_logprobs": [_entry(table, t, p) for t, p in s.top],
        }
        for s in scores
    ]


def text_logprobs(
    table: Sequence[bytes], scores: Sequence[TokenLogprob], offset: int
) -> dict[str, Any]:
    """Four parallel lists; `text_offset` counts characters from `offset`."""
    tokens = [_entry(table, s.token_id, 0.0)["token"] for s in scores]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [
        {_entry(table, t, 0.0)["token"]: _finite(p) for t, p in s.top} for s in scores
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(s.logprob) for s in scores],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
