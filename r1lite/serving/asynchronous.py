"""The engine behind an event loop: it runs in a thread of its own.

The loop never waits for the model: requests go to the thread through an inbox,
outputs come back with one call into the loop per step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.serving.engine import Engine, Output
from r1lite.serving.types import (
    Delta,
    EngineConfig,
    QueueFull,
    SamplingParams,
    Stats,
)

Command = Callable[[], list[Output]]


class EngineFailed(R1Error):
    """A step raised: nothing more will come (HTTP 500)."""


class Stream:
    """The deltas of one request; an async iterator. `aclose` aborts it."""

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._open = True

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. A cancelled wait aborts the request.

        Raises:
            EngineFailed: the engine broke down.
        """
        if not self._open and self._queue.empty():
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(item, Exception):
            self._open = False
            raise item
        if item.usage is not None:
            self._open = False
        return item

    async def aclose(self) -> None:
        """Abort unless finished; the pages are free before the next step."""
        if self._open:
            self._open = False
            self._queue = asyncio.Queue()
            self._abort(self.request_id)

    def put(self, item: Delta | Exception) -> None:
        """Called by the engine, in the loop."""
        if self._open:
            self._queue.put_nowait(item)


class AsyncEngine:
    """`start`, `generate` many requests at once, `drain`, `stop`."""

    def __init__(
        self,
        model: R1Model,
        tokenizer: R1Tokenizer | None,
        config: EngineConfig | None = None,
    ) -> None:
        self.engine = Engine(model, tokenizer, config)
        self._numbers = count()
        self._streams: dict[str, Stream] = {}  # touched by the loop alone
        self._inbox: deque[Command] = deque()
        self._new = 0  # requests sent that the snapshot does not show yet
        self._added = 0  # of them, those the engine has
        self._wake = threading.Condition()  # guards what stands above and below
        self._stats = self.engine.stats()
        self._stopping = self._draining = False
        self._failed: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; call it inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

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
            EngineFailed: the engine broke down or does not run.
            R1Error: bad ids, or an id in use.
        """
        if not self.healthy:
            raise EngineFailed("engine: it does not run; start the server again")
        if self._draining:
            raise QueueFull("queue: the server is going down; try another one")
        name = request_id or f"request-{next(self._numbers)}"
        if name in self._streams:
            raise R1Error(f"request_id: {name!r} is in use; give another")
        self.engine.check(prompt_ids, params)
        prompt = list(prompt_ids)
        with self._wake:
            limit = self.engine.config.max_waiting
            if self._stats.waiting + self._new >= limit:
                raise QueueFull(f"queue: {limit} requests wait already; try later")
            self._new += 1
            self._inbox.append(partial(self._add, prompt, params, name))
            self._wake.notify()
        stream = self._streams[name] = Stream(name, self._abort)
        return stream

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for the others; False if they did not all end.

        What still runs when time is up is aborted; its streams end with "abort".
        """
        self._draining = True
        deadline = self._loop.time() + timeout
        while self._streams and self.healthy:
            if self._loop.time() >= deadline:
                for name in list(self._streams):
                    self._send(partial(self.engine.abort, name))
                return False
            await asyncio.sleep(0.01)
        return self.healthy

    async def stop(self) -> None:
        """Abort everything and end the thread."""
        self._draining = True
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            await asyncio.sleep(0)  # what the thread sent last arrives

    def stats(self, events: bool = False) -> Stats:
        """The snapshot after the latest step; from any thread."""
        if not events:
            return self._stats
        return replace(self._stats, events=tuple(self.engine.events))

    @property
    def failed(self) -> bool:
        """Whether a step has raised."""
        return self._failed is not None

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and no step has raised."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and not self.failed and not self._stopping

    # In the event loop.

    def _abort(self, name: str) -> None:
        # Its name stays in use until the engine's last word on it has come.
        self._send(partial(self.engine.abort, name))

    def _send(self, command: Command) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for name, delta in outputs:
            stream = self._streams.get(name)
            if stream is not None:
                stream.put(delta)
                if delta.usage is not None:
                    del self._streams[name]

    def _fail(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.put(error)
        self._streams.clear()

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            with self._wake:
                commands, self._inbox = self._inbox, deque()
            outputs = [o for command in commands for o in command()]
            for name in list(self.engine.requests):
                outputs += self.engine.abort(name)
            self._call(self._deliver, outputs)
        except Exception as error:  # whatever it was, clients must not wait for ever
            self._failed = error
            failed = EngineFailed(
                f"engine: a step failed ({error}); restart the server"
            )
            self._call(self._fail, failed)
            raise
        finally:
            self._stats = self.engine.stats(events=False)

    def _turn(self) -> None:
        """Do what came in, then one step; sleep while there is nothing to do."""
        with self._wake:
            while not (self._inbox or self.engine.has_work or self._stopping):
                self._wake.wait()
            commands, self._inbox = self._inbox, deque()
        outputs = [output for command in commands for output in command()]
        self._snapshot()  # before the step: it shows how many wait
        outputs += self.engine.step()
        self._snapshot()
        if outputs:
            self._call(self._deliver, outputs)

    def _add(
        self, prompt: list[int], params: SamplingParams, name: str
    ) -> list[Output]:
        self._added += 1
        self.engine.enqueue(prompt, params, name)
        return []

    def _snapshot(self) -> None:
        stats = self.engine.stats(events=False)
        with self._wake:
            self._stats, self._new, self._added = stats, self._new - self._added, 0

    def _call(self, function: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, *args)
