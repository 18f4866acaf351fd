"""A request and its samples: what the engine knows of work under way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1lite.errors import R1Error
from r1lite.serving.pages import Prefix
from r1lite.serving.text import TextStream
from r1lite.serving.types import SamplingParams

Rank = tuple[int, int, int]


@dataclass(eq=False)
class Request:
    """One prompt that is continued `params.n` times.

    rank: who goes first; fixed on arrival, see Scheduler.
    arrived, began: when it came, when the first step with it started; seconds of
        the engine's clock.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    seed: int = 0
    rank: tuple[int, int] = (0, 0)
    stops: frozenset[int] = frozenset()
    samples: list[Sample] = field(default_factory=list)
    cached_tokens: int = 0
    completion_tokens: int = 0
    unfinished: int = 0
    arrived: float = 0.0
    began: float | None = None

    @classmethod
    def new(
        cls, id: str, prompt: Sequence[int], params: SamplingParams, end: int | None
    ) -> Request:
        """With a seed, if the client gave none, and with the model's `end` id."""
        seed = random.getrandbits(63) if params.seed is None else params.seed
        own = () if end is None or params.ignore_eos else (end,)
        stops = frozenset((*own, *params.stop_token_ids))
        return cls(id, list(prompt), params, seed, (0, 0), stops, unfinished=params.n)


@dataclass(eq=False)
class Sample:
    """One continuation. Its tokens' latents lie in `pages`, `computed` of them.

    tokens: the prompt's, then the generated ones.
    draft: a guess at the token after the last, to be checked by the next step.
    named, prefix, cacheable: how far its full pages are known to the pool.
    """

    request: Request
    index: int
    tokens: list[int]
    text: TextStream
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    draft: int | None = None
    named: int = 0
    prefix: Prefix | None = None
    cacheable: bool = True
    forked: bool = False
    running: bool = False
    done: bool = False
    seen_before: bool = False  # it was scheduled before: preempted since

    @property
    def rank(self) -> Rank:
        """Compares samples: the smaller goes first."""
        return (*self.request.rank, self.index)

    @property
    def pending(self) -> int:
        """Tokens whose latents are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens made so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def slots(self) -> int:
        """Places it takes among the running: its siblings' too, until they part."""
        return 1 if self.forked else self.request.params.n

    def forget(self) -> None:
        """Nothing is computed any more; the tokens stay."""
        self.computed, self.named = 0, 0
        self.pages, self.prefix, self.draft, self.cacheable = [], None, None, True


@dataclass(eq=False)
class Work:
    """What one step computes of one sample: `count` tokens from `start`.

    copy: a shared page and the new one it is copied to before anything is
    written. drafts: how many of the tokens are guesses. outputs: for how many of
    its last tokens the next one is wanted; fixed here, before that is known.
    """

    sample: Sample
    start: int
    count: int
    drafts: int = 0
    copy: tuple[int, int] | None = None
    outputs: int = field(init=False)

    def __post_init__(self) -> None:
        known = self.start + self.count - self.drafts == len(self.sample.tokens)
        self.outputs = 1 + self.drafts if known else 0

    @property
    def ids(self) -> Sequence[int]:
        """The tokens to compute."""
        sample = self.sample
        ids = sample.tokens[self.start : self.start + self.count]
        return [*ids, sample.draft] if self.drafts else ids  # type: ignore[list-item]


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse what the model cannot read.

    Raises:
        R1Error: no token, or an id outside the vocabulary.
    """
    if not prompt_ids:
        raise R1Error("prompt: is empty; give at least one token")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise R1Error(
            "prompt: holds a token id outside the vocabulary; use the model's tokenizer"
        )
