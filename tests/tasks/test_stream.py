"""Splits, unique sets and streams over every family."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import pytest

from r1lite import tasks
from r1lite.errors import R1Error
from r1lite.tasks.families import FAMILIES
from r1lite.tasks.problem import mix, split_of_text

EVERY = {f"{f.name}/{level}": 1.0 for f in FAMILIES.values() for level in f.levels}
HELD_OUT = ("validation", "test")


@pytest.mark.parametrize("name", EVERY)
def test_every_level_has_512_unique_problems_to_validate_and_test(name: str) -> None:
    family, level = name.split("/")
    for split in HELD_OUT:
        found = tasks.problems(family, int(level), split, 512, seed=0)
        assert len({p.key for p in found}) == len({p.question for p in found}) == 512
        assert {tasks.split_of(p) for p in found} == {split}


def test_nothing_that_trains_is_held_out() -> None:
    stream = tasks.stream(EVERY, seed=1)
    trained = {stream.problem_at(i).key for i in range(20_000)}
    for name in EVERY:
        family, level = name.split("/")
        for split in HELD_OUT:
            for problem in tasks.problems(family, int(level), split, 200, seed=2):
                assert problem.key not in trained


def test_the_split_is_80_10_10() -> None:
    drawn = [split_of_text(f"some text {i}") for i in range(20_000)]
    assert abs(drawn.count("train") / 20_000 - 0.8) < 0.02
    assert abs(drawn.count("test") / 20_000 - 0.1) < 0.02


def test_a_space_that_is_too_small_says_how_many_there_are() -> None:
    with pytest.raises(R1Error, match=r"chain/3 has only 9\d\d unique test problems"):
        tasks.problems("chain", 3, "test", 2000, seed=0)


def test_the_stream_is_random_access() -> None:
    forward = tasks.stream(EVERY, seed=7)
    backward = tasks.stream(EVERY, seed=7)
    wanted = [forward.problem_at(i) for i in range(50)]
    assert [backward.problem_at(i) for i in reversed(range(50))] == wanted[::-1]


def test_neighbouring_seeds_share_no_item() -> None:
    one, other = (tasks.stream({"chain/8": 1.0}, seed=s) for s in (0, 1))
    keys = {one.problem_at(i).key for i in range(300)}
    assert not keys & {other.problem_at(i).key for i in range(300)}


def test_shares_are_kept() -> None:
    stream = tasks.stream({"chain/3": 3.0, "sorting/4": 1.0, "product/1": 0.0}, seed=0)
    drawn = [stream.problem_at(i).family for i in range(2000)]
    assert abs(drawn.count("chain") / 2000 - 0.75) < 0.04
    assert drawn.count("product") == 0


def fingerprint() -> str:
    """A hash of what a fixed stream holds, question by question."""
    stream = tasks.stream(EVERY, seed=3)
    texts = [stream.problem_at(i).question for i in range(60)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


PINNED = "1f30c79c326037a6"


def test_the_same_problems_on_every_python_and_hash_seed() -> None:
    assert fingerprint() == PINNED
    assert mix(42, 1) != mix(43, 0)
    code = "import test_stream; print(test_stream.fingerprint())"
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.getcwd(), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, PYTHONHASHSEED="7", PYTHONPATH=path)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == PINNED


def test_the_stream_keeps_up_with_training() -> None:
    stream = tasks.stream({f"chain/{n}": 1.0 for n in range(3, 9)}, seed=0)
    start = time.process_time()
    for i in range(4000):
        stream.problem_at(i)
    assert 4000 / (time.process_time() - start) > 5000  # 40,000 on a free core


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "empty"),
        ({"chian/3": 1.0}, "family: 'chian' is unknown; choose chain, product"),
        ({"chain": 1.0}, "choose chain/3, chain/4"),
        ({"chain/2": 1.0}, "level: 'chain/2' is unknown"),
        ({"chain/3": -1.0}, "shares.chain/3"),
        ({"chain/3": float("nan")}, "shares.chain/3"),
        ({"chain/3": 0.0}, "all weights are 0"),
    ],
)
def test_bad_shares_name_the_remedy(shares: dict[str, float], message: str) -> None:
    with pytest.raises(R1Error, match=message) as error:
        tasks.stream(shares, seed=0)
    assert "\n" not in str(error.value)


def test_an_unknown_split_names_the_remedy() -> None:
    with pytest.raises(R1Error, match="choose train, validation, test"):
        tasks.problems("chain", 3, "dev", 1, seed=0)
