"""The fine-tuning mix: its shares, its wrong steps, and its order."""

from __future__ import annotations

import pytest

from r1lite import tasks
from r1lite.errors import R1Error
from r1lite.tasks.demonstrations import (
    DemoConfig,
    Demonstrations,
    demonstration_at,
    measured,
)

SHARES = {"chain/4": 2.0, "product/1": 1.0, "countdown/3": 1.0}


def test_the_measured_shares_are_the_configured_ones() -> None:
    config = DemoConfig(answer_only=0.6, wrong_steps=0.25)
    source = Demonstrations(config, SHARES, seed=0)
    shares = measured(source.at(i) for i in range(4000))
    assert abs(shares["answer_only"] - 0.6) < 0.03
    assert abs(shares["wrong_steps"] - 0.25) < 0.04
    assert abs(shares["chain/4"] - 0.5) < 0.03
    assert shares["count"] == 4000 and shares["reasoning_characters"] > 10


def test_only_the_demonstrations_marked_wrong_are_wrong() -> None:
    config = DemoConfig(answer_only=0.3, wrong_steps=0.5)
    stream = Demonstrations(config, SHARES, seed=1)
    seen = set()
    for i in range(300):
        demo = stream.at(i)
        family = tasks.FAMILIES[demo.name.split("/")[0]]
        body = demo.question.removeprefix(family.prefix)
        problem = family.build(body, int(demo.name.split("/")[1]))
        assert tasks.split_of(problem) == "train"
        assert family.check(problem, demo.answer) is not demo.wrong
        assert (demo.reasoning == problem.reasoning) is (
            demo.reasoning is not None and not demo.wrong
        )
        seen.add((demo.reasoning is None, demo.wrong))
    assert seen == {(True, False), (False, False), (False, True)}


def test_random_access_and_seeds() -> None:
    config = DemoConfig()
    source = Demonstrations(config, SHARES, seed=5)
    assert [source.at(i) for i in (9, 0, 4)] == [
        demonstration_at(i, 5, config, SHARES) for i in (9, 0, 4)
    ]
    assert [source.at(i) for i in range(9)] != [
        demonstration_at(i, 6, config, SHARES) for i in range(9)
    ]


def test_the_extremes() -> None:
    clean = DemoConfig(answer_only=0.0, wrong_steps=0.0)
    silent = DemoConfig(answer_only=1.0, wrong_steps=1.0)
    for i in range(50):
        demo, quiet = (
            demonstration_at(i, 0, clean, SHARES),
            demonstration_at(i, 0, silent, SHARES),
        )
        assert demo.reasoning and not demo.wrong
        assert quiet.reasoning is None and not quiet.wrong
        assert demo.question == quiet.question  # the mix does not move the problems


def test_measuring_nothing_divides_by_nothing() -> None:
    assert measured([])["count"] == 0


def test_unknown_families_are_refused() -> None:
    with pytest.raises(R1Error, match="family"):
        Demonstrations(DemoConfig(), {"poem/1": 1.0}, seed=0)
