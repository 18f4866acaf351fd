"""A little text of every kind, to train tiny tokenizers on."""

from __future__ import annotations

from r1lite.data.tokenizer import CONTROL

TEXT = [
    "The king gave the word, and the people made a song about it.\n" * 3,
    "def add(a: int, b: int) -> int:\n    return a + b\n\n" * 3,
    "12 + 34 = 46, and 2024 is a year. Größe, café, 文件已存在。٣٤ ½\n" * 3,
    " ".join(CONTROL) * 20,  # even text full of them must not teach them
]
