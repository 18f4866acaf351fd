"""The chapters' ranks: what they return, and whose error is told."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from parallel.rank_work import die, double, stumble

sys.path.append(str(Path(__file__).parents[2] / "chapters"))  # as notebooks see it
on_ranks = import_module("scripts.ranks").on_ranks


def test_answers_come_in_the_order_of_ranks() -> None:
    assert on_ranks(3, double, [5, 6, 7]) == [10, 12, 14]


def test_a_rank_that_dies_has_no_answer() -> None:
    assert on_ranks(2, die) == [None, 1]


def test_the_first_error_is_told_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)^rank 1: .*ValueError: the mistake"):
        on_ranks(3, stumble, wait_s=40)
    assert time.monotonic() - began < 20
