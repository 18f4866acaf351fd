"""From a checked request body to the engine's deltas, and the ways it can end."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.serving.api.errors import ApiError
from r1lite.serving.api.metrics import Metrics
from r1lite.serving.api.schema import MOST_CHOICES, Common
from r1lite.serving.asynchronous import AsyncEngine, EngineFailed, Stream
from r1lite.serving.text import byte_table
from r1lite.serving.types import Delta, PromptTooLong, QueueFull, SamplingParams

log = logging.getLogger("r1lite.serving")
RETRY = {"Retry-After": "1"}  # seconds
DRAINING = ApiError(
    503, "server: is shutting down; ask another one", "shutting_down", headers=RETRY
)


@dataclass
class Served:
    """The one model that a server serves.

    context: most tokens of prompt and answer together.
    request_seconds: after them a request ends, wherever it stands.
    """

    engine: AsyncEngine
    tokenizer: R1Tokenizer
    name: str
    context: int
    metrics: Metrics
    request_seconds: float = 600.0
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False

    def __post_init__(self) -> None:
        self.table = byte_table(self.tokenizer)

    def check_model(self, name: str) -> None:
        """Refuse every name but the served model's."""
        if name != self.name:
            raise ApiError(
                404,
                f"model: {name[:100]!r} is not served here; use {self.name!r}",
                "model_not_found",
                "model",
            )

    def params(
        self, body: Common, longest: int, prompt: str, limit: str, given: int | None
    ) -> SamplingParams:
        """The engine's parameters, for prompts of at most `longest` tokens.

        `prompt` and `limit` name the body's fields for messages; `given` is
        the limit on new tokens, None for all that the context has room for.
        """
        room = self.context - longest
        if room < 1:
            message = f"{prompt}: {longest} tokens leave no room in the context of "
            message += f"{self.context}; shorten it"
            raise ApiError(400, message, "context_length_exceeded", prompt)
        if given is not None and given > room:
            message = f"{limit}: {given} new tokens after a prompt of {longest} exceed "
            message += f"the context of {self.context}; ask for at most {room}"
            raise ApiError(400, message, "context_length_exceeded", limit)
        return SamplingParams(
            max_tokens=given or room,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=body.top_p or 1.0,
            top_k=max(body.top_k or 0, 0),
            min_p=body.min_p or 0.0,
            seed=body.seed,
            stop=body.stops(),
            n=body.n or 1,
            ignore_eos=bool(body.ignore_eos),
            priority=body.priority or 0,
        )

    async def begin(
        self, kind: str, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> Call:
        """Queue every prompt, or none: what is wrong is raised here."""
        if self.draining:
            raise DRAINING
        if params.n * len(prompts) > MOST_CHOICES:
            raise ApiError(
                400,
                f"n: {len(prompts)} prompts with {params.n} choices each are more "
                f"than {MOST_CHOICES}; ask for fewer",
                "invalid_value",
                "n",
            )
        call = Call(
            self, f"{kind}-{uuid.uuid4().hex}", params.n, sum(map(len, prompts))
        )
        try:
            for ids in prompts:
                name = f"{call.id}-{len(call.streams)}"
                call.streams.append(self.engine.generate(ids, params, name))
        except R1Error as error:
            for stream in call.streams:  # refused: not a request to be timed
                await stream.aclose()
            raise refusal(error) from error
        return call


def refusal(error: R1Error) -> ApiError:
    """The engine's no, as HTTP says it."""
    if isinstance(error, EngineFailed):
        return ApiError(503, f"server: {error}", "engine_failed")
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), "queue_full", headers=RETRY)
    code = "invalid_value"
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    return ApiError(400, str(error), code)


class Call:
    """One HTTP request in the engine: a stream for each of its prompts.

    Whoever has one must `aclose` it; what still runs is aborted then and its
    pages are freed.
    """

    def __init__(self, served: Served, id: str, n: int, prompt_tokens: int) -> None:
        self.served, self.id, self.n = served, id, n
        self.created = int(time.time())
        self.streams: list[Stream] = []
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        self.cached_tokens, self.reasoning_tokens = 0, 0
        self._timer = served.metrics.measure(prompt_tokens)
        self._open = True

    async def deltas(self) -> AsyncIterator[Delta]:
        """Every delta of every prompt; index = prompt * n + sample.

        Raises:
            ApiError: the engine stopped, by drain or by a fault.
        """
        source = _plain(self.streams[0]) if len(self.streams) == 1 else _merged(self)
        try:
            async for prompt, delta in source:
                if delta.finish_reason == "abort":
                    raise DRAINING
                self._timer.saw(delta)
                self.completion_tokens += len(delta.token_ids)
                if delta.usage is not None:
                    self.cached_tokens += delta.usage.cached_tokens
                yield replace(delta, index=prompt * self.n + delta.index)
        except (ApiError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            log.exception("the engine failed on %s", self.id)
            raise ApiError(
                500, "server: the engine failed; its log says why, try again"
            ) from error

    def usage(self) -> dict[str, Any]:
        """What came so far, as OpenAI counts it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    async def aclose(self) -> None:
        """Abort what has not ended; once more does nothing."""
        for stream in self.streams:
            await stream.aclose()
        if self._open:
            self._open = False
            self._timer.done()


async def _plain(stream: Stream) -> AsyncIterator[tuple[int, Delta]]:
    async for delta in stream:
        yield 0, delta


async def _merged(call: Call) -> AsyncIterator[tuple[int, Delta]]:
    """Several streams as one, in the order in which their deltas come."""
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()

    async def pump(prompt: int, stream: Stream) -> None:
        try:
            async for delta in stream:
                arrived.put_nowait((prompt, delta))
            arrived.put_nowait((prompt, None))
        except Exception as error:
            arrived.put_nowait((prompt, error))

    pumps = [asyncio.create_task(pump(i, s)) for i, s in enumerate(call.streams)]
    try:
        left = len(pumps)
        while left:
            prompt, got = await arrived.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                left -= 1
            else:
                yield prompt, got
    finally:
        for task in pumps:
            task.cancel()
        for task in pumps:
            with suppress(asyncio.CancelledError):
                await task
