"""Pretraining text: no held-out problem in any form, settable, deterministic."""

from __future__ import annotations

import re
from functools import cache

import pytest

from r1lite import tasks
from r1lite.errors import R1Error
from r1lite.tasks.documents import Documents, documents

FACT = re.compile(r"^(\d)([-+*])(\d)=(\d)$", re.M)


@cache
def corpus() -> str:
    return "\n".join(documents(0, size=600_000))


def test_no_test_or_validation_question_stands_in_the_text() -> None:
    lines = set(corpus().split("\n"))
    held_out = 0
    for family in tasks.FAMILIES.values():
        for level in family.levels:
            for split in ("validation", "test"):
                for problem in tasks.problems(family.name, level, split, 256, seed=0):
                    assert problem.question not in lines
                    held_out += 1
    assert held_out > 10_000
    assert any(line.startswith("In order, mod 10: ") for line in lines)


def test_every_chain_window_in_the_text_is_from_training() -> None:
    windows = re.findall(r"(?<![\d)])(?=(\d[-+*]\d[-+*]\d)(?!\d))", corpus())
    asked = re.findall(r"In order, mod 10: (\S+)", corpus())
    assert len(asked) > 500 and len(windows) > 500
    for body in asked:
        assert tasks.FAMILIES["chain"].split_of_body(body) == "train"


def test_every_expression_that_is_written_is_from_training() -> None:
    family = tasks.FAMILIES["expression"]
    written = re.findall(r"^Mod 10: (\S+)$", corpus(), re.M)
    written += re.findall(r"^\d[-+*]\d=\d (\S+)$", corpus(), re.M)
    assert len(written) > 1000
    assert all(family.split_of_body(body) == "train" for body in written)


def test_every_sorted_list_is_from_training() -> None:
    family = tasks.FAMILIES["sorting"]
    lists = re.findall(r"^Sort ([\d ]+)$", corpus(), re.M)
    lists += re.findall(r"^\d\d: (\d\d(?: \d\d){2,})$", corpus(), re.M)
    assert len(lists) > 1000
    assert all(family.split_of_body(body) == "train" for body in lists)


def test_the_text_is_plain() -> None:
    assert not re.search(r"[<>]\w|｜|think|<answer", corpus())
    assert corpus().isascii()


def test_steps_are_settable() -> None:
    worked = {"worked": 1.0}
    shares = {"chain/5": 1.0}
    with_steps = documents(1, 20, shares, 1.0, kinds=worked)
    without = documents(1, 20, shares, 0.0, kinds=worked)
    assert all(len(FACT.findall(text)) == 4 * 6 for text in with_steps)
    assert not any(FACT.findall(text) for text in without)
    questions = [re.findall(r"In order.*", text) for text in with_steps]
    assert questions == [re.findall(r"In order.*", text) for text in without]


@pytest.mark.parametrize(
    "kind", ["tables", "counting", "equalities", "stories", "definitions"]
)
def test_each_kind_alone(kind: str) -> None:
    texts = documents(2, count=30, kinds={kind: 1.0})
    assert len(set(texts)) >= 25
    assert all(text.endswith("\n") and text.strip() for text in texts)


def test_what_is_said_equal_is_equal() -> None:
    sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", corpus())
    assert len(sums) > 500
    for left, op, right, result in sums:
        a, b = int(left), int(right)
        assert {"+": a + b, "-": a - b, "*": a * b}[op] == int(result)
    for small, sign, large in re.findall(r"(\d+) ([<=>]) (\d+)$", corpus(), re.M):
        order = (int(small) > int(large)) - (int(small) < int(large))
        assert "=" in sign or "<=>"[order + 1] == sign


def test_random_access_size_and_seed() -> None:
    source = Documents(seed=4)
    texts = documents(4, count=12)
    assert [source.at(i) for i in (7, 3)] == [texts[7], texts[3]]
    assert documents(5, count=12) != texts
    sized = documents(4, size=5000)
    assert sum(map(len, sized)) >= 5000 > sum(map(len, sized[:-1]))
    assert sized[:12] == texts[: len(sized[:12])]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"poems": 1.0}, "kinds: 'poems' is unknown; choose worked"),
        ({"worked": -1.0}, "kinds.worked"),
        ({"worked": 0.0}, "all weights are 0"),
    ],
)
def test_bad_kinds(kinds: dict[str, float], message: str) -> None:
    with pytest.raises(R1Error, match=message):
        documents(0, count=1, kinds=kinds)


def test_count_or_size() -> None:
    with pytest.raises(R1Error, match="either count or size"):
        documents(0)
    with pytest.raises(R1Error, match="with_steps"):
        documents(0, 1, with_steps=1.5)
