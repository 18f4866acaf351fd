"""The engine behind an event loop: it runs in a thread of its own.

The loop never waits for the model: requests go to the thread through an inbox,
outputs come back with one call into the loop per step.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.serving.types import Delta, EngineConfig, SamplingParams, Stats


class Stream:
    """The deltas of one request; an async iterator. `aclose` aborts it."""

    request_id: str

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. A cancelled wait aborts the request."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Abort unless finished; the request's pages are freed at once."""
        raise NotImplementedError


class AsyncEngine:
    """`start`, `generate` many requests at once, `drain`, `stop`."""

    def __init__(
        self,
        model: R1Model,
        tokenizer: R1Tokenizer,
        config: EngineConfig | None = None,
    ) -> None: ...

    def start(self) -> None:
        """Start the thread; call it inside the running event loop."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> Stream:
        """Queue a request: `async for delta in engine.generate(...)`.

        Not a coroutine: what is wrong with the request is raised here, before
        any response has begun. A delta arrives as soon as its step is done.

        Raises:
            QueueFull: too many wait already, or the engine drains.
            PromptTooLong: it can never fit.
            R1Error: bad ids, an id in use, or the engine does not run.
        """
        raise NotImplementedError

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for the others; False if time ran out.

        What still runs then is aborted.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Abort everything and end the thread."""

    def stats(self) -> Stats:
        """A snapshot; cheap, from any thread."""
        raise NotImplementedError

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and the last step raised nothing."""
        raise NotImplementedError
