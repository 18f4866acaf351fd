"""A small tokenizer that every test of the room shares."""

from __future__ import annotations

import pytest
from support.texts import TEXT

from r1lite.data.tokenizer import R1Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> R1Tokenizer:
    return R1Tokenizer.train(TEXT, 400)
