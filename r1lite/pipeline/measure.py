"""Evaluations of a run: choose on validation, then read the test split once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.evaluation import (
    LevelResult,
    answer,
    by_level,
    pooled_accuracy,
    problem_set,
)
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.pipeline.context import Context
from r1lite.tasks import Problem
from r1lite.training.loop import derive_seed

GREEDY = 0.0


@dataclass(frozen=True)
class Way:
    """How answers are made: which model, how sampled, reasoning forced or not."""

    policy: str
    temperature: float = GREEDY
    think: bool = False

    @property
    def decode(self) -> str:
        """The name in the report."""
        return "greedy" if self.temperature == GREEDY else f"T={self.temperature:g}"

    @property
    def name(self) -> str:
        """The name of its file of results."""
        think = "_think" if self.think else ""
        return f"{self.policy}_{self.decode}{think}"


class Measure:
    """Evaluates ways of answering; every result is kept in the run directory."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.recipe.evaluation
        if not self.config.levels:
            levels = tuple(context.recipe.tasks.shares)
            self.config = self.config.model_copy(update={"levels": levels})
        self.tokenizer: R1Tokenizer = context.tokenizer()
        self._models: dict[str, R1Model] = {}
        self._problems: dict[str, list[Problem]] = {}

    def model(self, policy: str) -> R1Model:
        """The model of a stage, loaded once."""
        if policy not in self._models:
            self._models[policy] = self.context.model(policy)
        return self._models[policy]

    def problems(self, split: str) -> list[Problem]:
        """The problems of a split: the same for every way."""
        if split not in self._problems:
            c = self.config
            count = c.problems if split == "test" else c.validation_problems
            self._problems[split] = problem_set(c, split, count)
        return self._problems[split]

    def evaluate(self, way: Way, split: str) -> list[LevelResult]:
        """Accuracy by level, one answer to each problem."""

        def make() -> list[dict[str, Any]]:
            items = answer(
                self.model(way.policy),
                self.tokenizer,
                self.problems(split),
                self._sampling(way, split),
                think=way.think,
            )
            results = by_level(items)
            self.context.say(
                f"  {split} {way.name}: {pooled_accuracy(results):.1%} right"
            )
            return [asdict(r) for r in results]

        rows = self.context.cached(f"{split}_{way.name}", make)
        return [LevelResult(**r) for r in rows]

    def pass_k(self, way: Way) -> list[LevelResult]:
        """pass@k at temperature 1 on the first problems of each test level."""

        def make() -> list[dict[str, Any]]:
            c = self.config
            few = problem_set(c, "test", c.problems)
            few = [
                p
                for at in range(0, len(few), c.problems)
                for p in few[at : at + c.pass_problems]
            ]
            # Greedy, all 16 samples would be one and the same answer.
            how = replace(self._sampling(way, "test"), temperature=1.0)
            model = self.model(way.policy)
            items = answer(model, self.tokenizer, few, how, c.pass_k, way.think)
            return [asdict(r) for r in by_level(items, c.pass_k)]

        rows = self.context.cached(f"pass_{way.name}", make)
        return [LevelResult(**r) for r in rows]

    def best_temperature(self, policy: str, think: bool = False) -> Way:
        """The decoding that does best on validation: greedy or one of the sweep."""
        ways = [Way(policy, t, think) for t in (GREEDY, *self.config.sweep)]
        scores = [pooled_accuracy(self.evaluate(w, "validation")) for w in ways]
        return ways[scores.index(max(scores))]

    def _sampling(self, way: Way, split: str) -> Sampling:
        seed = derive_seed(self.context.recipe.seed, "evaluate", split, way.name)
        return Sampling(
            self.config.max_new_tokens,
            way.temperature,
            stop_ids=(self.tokenizer.eos_id,),
            seed=seed,
        )
