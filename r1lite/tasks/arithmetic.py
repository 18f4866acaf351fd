"""A small parser of sums and products: model output never reaches `eval`."""

from __future__ import annotations

import re

MAX_LENGTH = 64  # characters; bounds the recursion too
_ALLOWED = re.compile(r"[0-9+\-*() ]*")
_WORDS = re.compile(r"[0-9]+|[-+*()]")


def value_of(text: str, numbers: list[int]) -> int | None:
    """The value of `text` if it uses each of `numbers` exactly once, else None.

    The usual precedence; no signs, no leading zeros, no division. Never raises.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH or not _ALLOWED.fullmatch(text):
        return None
    words = _WORDS.findall(text)
    used = [word for word in words if word.isdigit()]
    if sorted(used) != sorted(map(str, numbers)):
        return None
    try:
        value, end = _sum(words, 0)
    except (IndexError, ValueError):
        return None
    return value if end == len(words) else None


def _sum(words: list[str], at: int) -> tuple[int, int]:
    """sum = product (("+" | "-") product)*; returns (value, next position)."""
    value, at = _product(words, at)
    while at < len(words) and words[at] in "+-":
        right, end = _product(words, at + 1)
        value = value + right if words[at] == "+" else value - right
        at = end
    return value, at


def _product(words: list[str], at: int) -> tuple[int, int]:
    """product = atom ("*" atom)*."""
    value, at = _atom(words, at)
    while at < len(words) and words[at] == "*":
        right, at = _atom(words, at + 1)
        value *= right
    return value, at


def _atom(words: list[str], at: int) -> tuple[int, int]:
    """atom = number | "(" sum ")"."""
    if words[at] != "(":
        return int(words[at]), at + 1
    value, at = _sum(words, at + 1)
    if words[at] != ")":
        raise ValueError("parenthesis not closed")
    return value, at + 1
