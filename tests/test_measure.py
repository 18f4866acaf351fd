"""Measuring: which decoding each number in the report comes from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.rollouts import answered

from r1lite.evaluation import EvalConfig
from r1lite.generation import Sampling
from r1lite.pipeline import measure as module
from r1lite.pipeline.measure import Measure, Way
from r1lite.pipeline.summary import evaluations
from r1lite.recipe import load


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sampling, int]]:
    """Every (sampling, n) that a Measure asks answers with; none is made."""
    seen: list[tuple[Sampling, int]] = []

    def answer(
        model: Any, tok: Any, problems: Any, how: Sampling, n: int = 1, think: Any = 0
    ) -> list[Any]:
        seen.append((how, n))
        made = [answered(3, i % 2 == 0, 5) for i in range(len(problems) * n)]
        return [replace(a, problem=problems[i // n]) for i, a in enumerate(made)]

    monkeypatch.setattr(module, "answer", answer)
    return seen


@pytest.fixture
def measure() -> Measure:
    recipe = load("smoke").model_copy(
        update={
            "evaluation": EvalConfig(
                levels=("chain/3",), problems=8, validation_problems=4, pass_problems=4
            )
        }
    )
    context = SimpleNamespace(
        recipe=recipe,
        tokenizer=lambda: SimpleNamespace(eos_id=1),
        model=lambda policy: None,
        cached=lambda name, make: make(),
        say=lambda text: None,
    )
    return Measure(context)  # type: ignore[arg-type]


def test_pass_k_samples_at_temperature_1(
    measure: Measure, asked: list[tuple[Sampling, int]]
) -> None:
    """Greedy, all samples would be the same and pass@16 would be pass@1."""
    way = Way("sft")
    (row,) = measure.pass_k(way)
    ((how, n),) = asked
    assert (how.temperature, n, row.n) == (1.0, 16, 4)
    assert (row.accuracy, row.pass_k) == (0.5, 1.0)
    greedy = measure.evaluate(way, "test")
    assert asked[-1][0].temperature == 0
    shown = evaluations([(way, "test", greedy)], {way.name: [row]})
    assert (shown[0].pass1, shown[0].pass16) == (0.5, 1.0)
    held = evaluations([(way, "validation", greedy)], {way.name: [row]})
    assert (held[0].pass1, held[0].pass16) == (None, None)


def test_the_temperature_is_chosen_on_validation(
    measure: Measure, asked: list[tuple[Sampling, int]]
) -> None:
    measure.best_temperature("base")
    assert [how.temperature for how, _ in asked] == [0.0, 0.4, 0.7, 1.0]
    assert set(measure._problems) == {"validation"}
