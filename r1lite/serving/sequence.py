"""A request and its samples: what the engine knows of work under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from r1lite.serving.pages import Prefix
from r1lite.serving.text import TextStream
from r1lite.serving.types import SamplingParams

Rank = tuple[int, int, int]


@dataclass(eq=False)
class Request:
    """One prompt that is continued `params.n` times.

    rank: who goes first; fixed on arrival, see Scheduler.
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
    written. drafts: how many of the tokens are guesses.
    """

    sample: Sample
    start: int
    count: int
    drafts: int = 0
    copy: tuple[int, int] | None = None

    @property
    def ids(self) -> Sequence[int]:
        """The tokens to compute."""
        sample = self.sample
        ids = sample.tokens[self.start : self.start + self.count]
        return [*ids, sample.draft] if self.drafts else ids  # type: ignore[list-item]

    @property
    def outputs(self) -> int:
        """For how many of its last tokens the next one is wanted."""
        known = self.start + self.count - self.drafts == len(self.sample.tokens)
        return 1 + self.drafts if known else 0
