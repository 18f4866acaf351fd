"""reasoning-gym behind our own problems, splits and scoring."""

from __future__ import annotations

import builtins
from random import Random
from typing import Any

import pytest

from r1lite import tasks
from r1lite.errors import R1Error
from r1lite.tasks import gym
from r1lite.tasks.demonstrations import DemoConfig, demonstration_at


@pytest.mark.parametrize("dataset", gym.DATASETS)
def test_every_dataset_makes_short_unique_problems(dataset: str) -> None:
    found = tasks.problems(f"gym_{dataset}", 1, "test", 8, seed=0)
    assert len({p.question for p in found}) == 8
    for problem in found:
        assert tasks.split_of(problem) == "test"
        assert len(problem.question) <= gym.MAX_QUESTION
        assert "\n" not in problem.question
        assert tasks.check(problem, f" {problem.answer}\n")


def test_a_substring_earns_nothing() -> None:
    problem = tasks.Problem("gym_gcd", 1, "Greatest ...", "10", (), "k")
    right = [tasks.check(problem, text) for text in ("10", "1", "100", "", "10 10")]
    assert right == [True, False, False, False, False]


def test_a_sum_is_what_its_question_says() -> None:
    problem = gym.family("chain_sum").make(Random(0), 1)
    terms = problem.question.removeprefix("Add up ").split()
    total = int(terms[0])
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        total += int(term) if sign == "+" else -int(term)
    assert problem.answer == str(total)


def test_settings_reach_the_generator() -> None:
    family = gym.family("chain_sum", min_terms=2, max_terms=2)
    questions = [family.make(Random(i), 1).question for i in range(20)]
    assert all(len(question.split()) == 5 for question in questions)


def test_the_stream_mixes_it_with_our_own() -> None:
    stream = tasks.stream({"gym_gcd/1": 1.0, "chain/3": 1.0}, seed=0)
    assert {stream.problem_at(i).family for i in range(40)} == {"gym_gcd", "chain"}


def test_demonstrations_without_steps_answer_at_once() -> None:
    config = DemoConfig(answer_only=0.0, wrong_steps=1.0)
    demo = demonstration_at(0, 0, config, {"gym_gcd/1": 1.0})
    assert demo.reasoning is None and not demo.wrong
    family = gym.family("gcd")
    with pytest.raises(R1Error, match="has no steps"):
        family.corrupt(family.make(Random(0), 1), Random(0))


@pytest.mark.parametrize("dataset", ["products", "countdown", "poems"])
def test_other_datasets_are_refused(dataset: str) -> None:
    with pytest.raises(R1Error, match="unknown; choose gym_basic_arithmetic"):
        tasks.stream({f"gym_{dataset}/1": 1.0}, seed=0)


@pytest.mark.parametrize("settings", [{"min_terms": 9, "max_terms": 2}, {"colour": 1}])
def test_refused_settings_are_one_line(settings: dict[str, int]) -> None:
    with pytest.raises(R1Error, match="reasoning-gym refuses") as error:
        gym.family("chain_sum", **settings)
    assert "\n" not in str(error.value)


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "reasoning_gym":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(R1Error, match=r"pip install"):
        gym.family("gcd")
