"""A rank that is slow, and one that stops taking part."""

from __future__ import annotations

import re

import pytest
from parallel.launch import torchrun


@pytest.mark.parametrize(
    ("fate", "words"),
    [("hangs", "got no answer for [2-4] s"), ("dies", "lost a rank")],
)
def test_the_rank_that_stops_is_named(fate: str, words: str) -> None:
    found = torchrun("watch_workers.py", 2, fate)
    line = (
        f"^rank 0: 'step 7: gradients' {words}; rank 1 is in 'step 7: forward'; see "
        "what happened there, then start again from the last checkpoint$"
    )
    assert re.search(line, found, re.MULTILINE), found
    for rank in (0, 1) if fate == "hangs" else ():
        assert f"rank {rank} saw the slow rank" in found


def test_a_rank_is_slow_though_the_others_wait_in_an_all_to_all() -> None:
    """The rows' way to the experts and back lies outside of watched blocks."""
    found = torchrun("watch_workers.py", 2, "exchanges")
    assert found.count("the slow rank was seen") == 2
