"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from r1lite.errors import R1Error

FinishReason = Literal["stop", "length", "abort"]


class QueueFull(R1Error):
    """The waiting line is at its bound: try again later (HTTP 429)."""


class PromptTooLong(R1Error):
    """Prompt and new tokens exceed the context or the whole cache (HTTP 400)."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens. `temperature` 0 is greedy.

    Filters apply in this order: temperature, top-k, top-p, min-p; `top_k` 0 is
    off. Sample j of a request draws from a stream of its own, made from
    (seed, j): the same request gives the same tokens whatever runs beside it.
    Without a seed the engine picks one.

    stop: strings that end the text; they are not part of it.
    stop_token_ids: besides the model's end-of-text id. The id that ended a
        sequence is among its token ids, its name is not in the text.
    ignore_eos: the end-of-text id is a token like others.
    logprobs: None for none, else how many alternatives beside the choice (0-20).
    priority: lower runs earlier; waiting makes up for it (see Scheduler).
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    priority: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            _require(math.isfinite(getattr(self, name)), name, "a finite number")
        _require(self.max_tokens >= 1, "max_tokens", "at least 1")
        _require(self.temperature >= 0, "temperature", "0 (greedy) or above")
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", "0 (off) or above")
        _require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        _require(self.n >= 1, "n", "at least 1")
        _require(self.seed is None or abs(self.seed) < 2**63, "seed", "64 bits")
        _require(abs(self.priority) <= 1000, "priority", "-1000 to 1000")
        _require(
            self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", "0 to 20"
        )
        _require(all(self.stop), "stop", "strings of at least one character")


def _require(good: bool, name: str, remedy: str) -> None:
    if not good:
        raise R1Error(f"{name}: out of range; give {remedy}")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms under the temperature's distribution, before filters.

    With temperature 0 they are the model's own. `top`: the most likely
    (token, logprob) pairs, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a whole request: `completion_tokens` over all n samples.

    `cached_tokens` of the prompt were found in the prefix cache. `queue_seconds`
    passed before the engine first computed anything of it.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    queue_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Delta:
    """New output of one sample of a request.

    index: which of the n samples.
    token_ids: new tokens. They may come before their text does.
    text: new text. Held back while it may be part of a stop string or of a
        character that is not whole; control tokens appear by their names.
    logprobs: one for each of token_ids if the request asked for them.
    finish_reason: set on the sample's last delta.
    usage: set on the request's last delta.
    """

    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class EngineConfig:
    """The engine's limits.

    num_pages: pages of `page_size` tokens in the cache; None: as many as fit
        `memory_bytes`.
    max_batch_tokens: tokens computed in one step, prefill and decode together.
    max_running: samples that run at once.
    max_waiting: requests that may wait; one more is refused with QueueFull.
    aging: steps of waiting that weigh as much as one unit of priority.
    speculate: draft with the MTP module. It changes no token, greedy or drawn:
        what is drawn depends on the seed and the place alone.
    max_events: how many of the latest events are kept for a timeline.
    """

    num_pages: int | None = None
    memory_bytes: int = 256 * 2**20
    page_size: int = 16
    max_batch_tokens: int = 256
    max_running: int = 32
    max_waiting: int = 256
    prefix_cache: bool = True
    speculate: bool = False
    aging: int = 64
    max_events: int = 4096

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("prefix_cache", "speculate", "max_events", "num_pages"):
                _require(value >= 1, f"engine.{f.name}", "at least 1")
        _require(self.num_pages is None or self.num_pages >= 1, "engine.num_pages", "1")
        _require(self.max_events >= 0, "engine.max_events", "0 or more")
        _require(
            self.max_batch_tokens >= self.max_running,
            "engine.max_batch_tokens",
            "at least max_running: every sample that decodes takes one",
        )


EventKind = Literal[
    "queued", "scheduled", "prefill", "token", "preempted", "finished", "aborted"
]


@dataclass(frozen=True)
class Event:
    """Something that happened to a request, for timelines and latencies.

    time: seconds of the server's Clock, monotonic.
    step: the engine's step it happened in.
    tokens: computed by a "prefill", or made by a "token" event.
    """

    time: float
    step: int
    request_id: str
    index: int
    kind: EventKind
    tokens: int = 0


@dataclass
class Stats:
    """A snapshot of the engine: gauges first, then counters since its start."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0  # held by running samples
    pages_cached: int = 0  # hold a prefix that nobody uses now; free on demand
    pages_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of them found
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    finished: dict[str, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "abort": 0}
    )
    events: Sequence[Event] = ()

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the model agreed with."""
        return self.accepted / self.drafted if self.drafted else 0.0
