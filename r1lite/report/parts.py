"""The parts of report.json that describe the run, each a checked model.

All shares and accuracies are fractions in [0, 1], lengths are in tokens,
times in seconds. A part that a recipe does not produce stays empty and the
report leaves its section out.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Split = Literal["train", "validation", "test"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A diverged run measures NaN; the report then says "not measured", not "NaN".
Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Part):
    """Where the run was made; `r1lite.report.machine.this_machine()` fills it."""

    cpu: str
    cores: int = Field(ge=1)
    threads: int = Field(default=1, ge=1)
    memory_gb: float | None = None
    accelerator: str | None = None
    system: str = ""
    python: str
    torch: str
    commit: str | None = None
    changed_since_commit: bool = False


class Stage(Part):
    """One stage in the order run; `name` is the "stage" of metrics.jsonl."""

    name: str
    seconds: Amount
    tokens: Count = 0
    tokens_per_s: Amount = 0.0
    steps: Count = 0
    note: str = ""


class Source(Part):
    name: str
    package: str
    licence: str
    tokens: Count | None = None


class Domain(Part):
    """One domain of the pretraining mixture; shares are of tokens."""

    name: str
    asked: Share
    measured: Share
    tokens: Count
    bytes: Count
    sources: list[Source] = []


class Tokenizer(Part):
    vocab_size: int = Field(ge=1)
    bytes_per_token: Measured = None
    bytes_per_token_by_domain: dict[str, Measured] = {}


class Model(Part):
    """Active parameters are those that one token passes through."""

    name: str
    params_total: Count
    params_active: Count
    layers: Count | None = None
    hidden_size: Count | None = None
    experts: Count | None = None
    experts_per_token: Count | None = None
    shared_experts: Count | None = None
    context: Count | None = None


class Demonstrations(Part):
    """How the SFT mix was made: it builds the gap that RL then closes.

    answer_only: share of all examples without reasoning.
    wrong_steps: share of the *reasoned* examples that carry a wrong step.
    """

    examples: Count
    answer_only_asked: Share
    answer_only: Share
    wrong_steps_asked: Share
    wrong_steps: Share
    note: str = ""


class HeldOut(Part):
    """Bits per byte of held-out text, policy -> value, in training order.

    Usual keys: "untrained", "base" (pretrained), "sft", "grpo".
    """

    domain: str
    bytes: Count
    bits_per_byte: dict[str, Measured]
