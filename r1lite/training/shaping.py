"""What R1 and DAPO add to the rule's reward: language, and a price for overlength."""

from __future__ import annotations

import re
from collections.abc import Collection

_WORD = re.compile(r"[^\W\d_]+")  # letters only: numbers belong to every language


def language_consistency(reasoning: str | None, words: Collection[str]) -> float:
    """Share of the reasoning's words that are `words` of the question's language.

    R1, arXiv 2501.12948 (v1), section 2.3.2: added to the accuracy reward because
    R1-Zero mixed languages. Reasoning without any word earns 0, or saying nothing
    would be the cheapest way to be consistent.
    """
    found = _WORD.findall(reasoning or "")
    if not found:
        return 0.0
    return sum(w.lower() in words for w in found) / len(found)


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """0 up to `limit - buffer` tokens, then linearly down to -1 at `limit`.

    DAPO, arXiv 2503.14476, eq. 13: a cliff at the limit punishes sound reasoning
    that was merely cut off; a slope warns before it. `buffer` 0 turns it off.
    """
    over = length - (limit - buffer)
    return -min(1.0, over / buffer) if buffer and over > 0 else 0.0
