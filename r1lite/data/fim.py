"""Fill in the middle: some documents are reordered so that a model learns to insert.

A document is cut in three and written prefix, suffix, middle (PSM), as DeepSeek-V3
does with a tenth of its documents (arXiv 2412.19437, section 4.1). The cuts are
between characters, because a cursor may stand inside a token. The three marks are
control tokens behind the vocabulary; text that spells one stays text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error

# DeepSeek's names of them.
FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
RATE = 0.1  # V3, section 4.1


class Marks(NamedTuple):
    """Ids of the three control tokens."""

    begin: int
    hole: int
    end: int


def add_marks(tokenizer: R1Tokenizer) -> Marks:
    """Give `tokenizer` the three marks, behind its last id; they are saved with it.

    The ids that there were stay, so a model only grows by three rows. A second
    call changes nothing.
    """
    known = tokenizer.backend
    known.add_special_tokens([AddedToken(name, special=True) for name in FIM])
    return marks(tokenizer)


def marks(tokenizer: R1Tokenizer) -> Marks:
    """The ids of the marks.

    Raises:
        R1Error: the tokenizer has none.
    """
    known = map(tokenizer.backend.token_to_id, FIM)
    ids = [i for i in known if i is not None]
    if len(ids) < len(FIM):
        raise R1Error(
            "data.fim: the tokenizer has no fill-in-the-middle marks; call "
            "add_marks on it before the model is made, or set the share to 0"
        )
    return Marks(*ids)


def psm(
    tokenizer: R1Tokenizer, text: str, start: int, stop: int, at: Marks
) -> list[int]:
    """Ids of `text` with its characters `start` to `stop` moved to the end."""
    prefix, suffix, middle = tokenizer.encode_batch(
        [text[:start], text[stop:], text[start:stop]]
    )
    return [at.begin, *prefix, at.hole, *suffix, at.end, *middle]


def fill_in_the_middle(
    tokenizer: R1Tokenizer,
    documents: Sequence[list[int]],
    rate: float,
    seed: int,
) -> list[list[int]]:
    """Reorder a share `rate` of `documents` (token ids), the others as they are.

    Two places are drawn evenly among the characters, for each document by its
    number and `seed`; any of the three parts may be empty. A reordered document
    has three tokens more, and a few where a cut divides a token.
    """
    at = marks(tokenizer) if rate else Marks(0, 0, 0)
    done = []
    for i, ids in enumerate(documents):
        rng = random.Random(f"fim/{seed}/{i}")
        if rng.random() < rate:
            text = tokenizer.decode(ids)
            a, b = sorted(int(rng.random() * (len(text) + 1)) for _ in range(2))
            ids = psm(tokenizer, text, a, b, at)
        done.append(ids)
    return done
