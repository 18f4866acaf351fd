"""The rule-based reward of R1-Zero: accuracy plus format.

DeepSeek-R1, arXiv 2501.12948, section 2.2.2: the same two parts, no neural
reward model. Their weights belong to the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from r1lite.settings import Section
from r1lite.tasks.families import check
from r1lite.tasks.problem import Problem


class Response(Protocol):
    """What the reward reads of a parsed response (`r1lite.data.chat.Response`)."""

    @property
    def answer(self) -> str | None:
        """The text of the last closed answer block, None when there is none."""

    @property
    def well_formed(self) -> bool:
        """Optional thinking, exactly one answer block, end of sentence."""

    @property
    def has_think(self) -> bool:
        """Whether a complete thinking block stands before the answer."""


class RewardConfig(Section):
    """What the two rewards are worth.

    With `format_requires_think` a well-formed response without reasoning earns no
    format reward. That pays for reasoning as such, so leave it off where the claim
    is that accuracy alone made the model reason.
    """

    accuracy: float = Field(default=1.0, ge=0)
    format: float = Field(default=0.1, ge=0)
    format_requires_think: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """accuracy and format are 0 or 1; total is their weighted sum."""

    accuracy: float
    format: float
    total: float


def score(problem: Problem, response: Response, config: RewardConfig) -> Score:
    """Score one response. Never raises, whatever the model wrote."""
    right = response.answer is not None and check(problem, response.answer)
    formed = response.well_formed and (
        response.has_think or not config.format_requires_think
    )
    total = config.accuracy * right + config.format * formed
    return Score(float(right), float(formed), total)
