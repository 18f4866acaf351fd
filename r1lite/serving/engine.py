"""The engine: requests in, tokens out, one step at a time.

`step` asks the scheduler for work, runs the model once, picks a token for every
row that needs one, and hands back what is new. It is synchronous and reads the
clock only to stamp events; `asynchronous.py` puts it in a thread. `dynamic.py` is
the simple way it is compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.serving.cache import page_bytes
from r1lite.serving.clock import Clock
from r1lite.serving.output import Pick, Row, accept, pick
from r1lite.serving.pages import PagePool
from r1lite.serving.runner import Runner
from r1lite.serving.scheduler import Scheduler
from r1lite.serving.sequence import Request, Sample, Work, check_prompt
from r1lite.serving.text import TextStream, byte_table
from r1lite.serving.types import (
    Delta,
    EngineConfig,
    Event,
    EventKind,
    PromptTooLong,
    QueueFull,
    SamplingParams,
    Stats,
    Usage,
)

Output = tuple[str, Delta]  # the request's id and what is new


class Engine:
    """Serves one model. Not thread-safe: one caller.

    Without a tokenizer it works on token ids: texts are empty.
    """

    def __init__(
        self,
        model: R1Model,
        tokenizer: R1Tokenizer | None = None,
        config: EngineConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.model, self.config = model, config or EngineConfig()
        self.clock, c = clock or Clock(), self.config
        if c.speculate and model.mtp is None:
            raise R1Error(
                "engine.speculate: this model has no MTP module to draft with; "
                "turn it off"
            )
        self.table = byte_table(tokenizer) if tokenizer else None
        pages = c.num_pages or _pages_for(model, c)
        self.pool = PagePool(pages, c.page_size, c.prefix_cache)
        self.scheduler = Scheduler(c, self.pool, self._note)
        self.runner = Runner(model, pages, c.page_size, c.speculate)
        self.requests: dict[str, Request] = {}
        self.events: deque[Event] = deque(maxlen=c.max_events)
        self.counts = Stats(pages_total=pages)
        self.arrivals = 0
        self.now = self.clock.now()

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> str:
        """Queue a request; returns its id.

        Raises:
            QueueFull, PromptTooLong, R1Error: see `check` and EngineConfig.
        """
        self.check(prompt_ids, params, request_id)
        if len(self.scheduler.waiting) >= self.config.max_waiting:
            raise QueueFull(
                f"queue: {self.config.max_waiting} requests wait already; try later"
            )
        return self.enqueue(prompt_ids, params, request_id)

    def enqueue(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> str:
        """`add_request` for a caller who has checked the request and the queue."""
        self.now = self.clock.now()
        number, self.arrivals = self.arrivals, self.arrivals + 1
        name, end = request_id or f"request-{number}", self.model.config.eos_token_id
        request = Request.new(name, prompt_ids, params, end)
        steps = self.counts.steps
        request.arrived = self.now
        request.rank = (params.priority * self.config.aging + steps, number)
        request.samples = [self._sample(request, 0)]
        request.samples[0].forked = params.n == 1
        self.requests[request.id] = request
        self._note(request.samples[0], "queued", len(prompt_ids))
        self.scheduler.add(request.samples[0])
        return request.id

    def check(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> None:
        """Refuse what can never be served. Reads only what never changes,
        except whether the id is in use.

        Raises:
            PromptTooLong: the context or all pages together are too short.
            R1Error: anything else, by name.
        """
        check_prompt(prompt_ids, self.model.config.vocab_size)
        room = self.config.page_size * self.counts.pages_total
        limit = min(self.model.config.max_position_embeddings, room)
        if len(prompt_ids) + params.max_tokens > limit:
            raise PromptTooLong(
                f"max_tokens: {len(prompt_ids)} prompt tokens and {params.max_tokens} "
                f"new ones exceed the room for {limit}; shorten the prompt or lower "
                "max_tokens"
            )
        if params.n > self.config.max_running:
            raise R1Error(
                f"n: {params.n} samples do not run at once here; give at most "
                f"{self.config.max_running}"
            )
        if params.stop and self.table is None:
            raise R1Error("stop: this engine has no tokenizer; use stop_token_ids")
        if request_id is not None and request_id in self.requests:
            raise R1Error(f"request_id: {request_id!r} is in use; give another")

    @property
    def has_work(self) -> bool:
        """Whether a step would find something to do."""
        return bool(self.requests)

    def step(self) -> list[Output]:
        """Run the model once; what is new, in no particular order."""
        self.now = self.clock.now()
        self.counts.steps += 1  # what the plan notes happens in this step
        work = self.scheduler.plan()
        if not work:
            self.counts.steps -= 1
            return []
        for w in work:
            if w.sample.request.began is None:
                w.sample.request.began = self.now
        logits = self.runner.run(work)
        self.clock.ran(sum(w.count for w in work))
        self.now = self.clock.now()
        rows = self._rows(work)
        outputs = self._accept(rows, pick(rows, logits)) if rows else []
        if self.config.speculate:
            self._draft(work)
        return outputs

    def abort(self, request_id: str) -> list[Output]:
        """End a request now; its pages are free when this returns."""
        request = self.requests.get(request_id)
        if request is None:
            return []
        self.now = self.clock.now()
        missing = set(range(request.params.n))
        for sample in request.samples:
            self.scheduler.remove(sample)
            if sample.done:
                missing.discard(sample.index)
            else:
                self._note(sample, "aborted", 0)
        return [self._close(request, Delta(i, finish_reason="abort")) for i in missing]

    def stats(self, events: bool = True) -> Stats:
        """A snapshot."""
        scheduler, pool = self.scheduler, self.pool
        return replace(
            self.counts,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_used=pool.used,
            pages_cached=len(pool.idle),
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            finished=dict(self.counts.finished),
            events=tuple(self.events) if events else (),
        )

    def _rows(self, work: Sequence[Work]) -> list[Row]:
        """Count what was computed; the rows whose next token is wanted."""
        rows: list[Row] = []
        source = 0
        for w in work:
            sample = w.sample
            if w.count > w.drafts + 1 or not w.outputs:
                self._note(sample, "prefill", w.count)
            self.scheduler.advance(sample, w.count - w.drafts)
            rows += [Row(sample, source + k, k) for k in range(w.outputs)]
            source += w.outputs
            if w.outputs and not sample.forked:
                rows += [Row(s, source - 1) for s in self._siblings(sample)]
        return rows

    def _siblings(self, sample: Sample) -> list[Sample]:
        """The other samples of its request: they start where its prompt ends."""
        request = sample.request
        new = [self._sample(request, j) for j in range(1, request.params.n)]
        request.samples += new
        self.scheduler.fork(sample, new)
        for sibling in new:
            self._note(sibling, "scheduled", len(sibling.tokens))
        return new

    def _accept(self, rows: Sequence[Row], picks: Sequence[Pick]) -> list[Output]:
        """Give every sample its new tokens; those that end leave."""
        mine: dict[Sample, list[Pick]] = {}
        for row, choice in zip(rows, picks, strict=True):
            mine.setdefault(row.sample, []).append(choice)
        outputs = []
        for sample, choices in mine.items():
            if not sample.generated and not sample.index:
                self.counts.prompt_tokens += len(sample.tokens)
            delta = accept(sample, choices)
            if len(choices) > 1:  # the second was picked after a guess
                agreed = choices[0].token == sample.draft
                self.counts.drafted += 1
                self.counts.accepted += agreed
                if len(delta.token_ids) > 1:
                    self.scheduler.advance(sample, 1)
            sample.draft = None
            self.counts.generated_tokens += len(delta.token_ids)
            sample.request.completion_tokens += len(delta.token_ids)
            self._note(sample, "token", len(delta.token_ids))
            if delta.finish_reason:
                self._note(sample, "finished", 0)
                self.scheduler.remove(sample)
                sample.done = True
                outputs.append(self._close(sample.request, delta))
            else:
                outputs.append((sample.request.id, delta))
        return outputs

    def _close(self, request: Request, delta: Delta) -> Output:
        """The last delta of a sample; of the request if no other runs."""
        assert delta.finish_reason
        self.counts.finished[delta.finish_reason] += 1
        request.unfinished -= 1
        if request.unfinished:
            return request.id, delta
        del self.requests[request.id]
        began = self.now if request.began is None else request.began
        usage = Usage(
            len(request.prompt),
            request.completion_tokens,
            request.cached_tokens,
            began - request.arrived,
        )
        return request.id, replace(delta, usage=usage)

    def _draft(self, work: Sequence[Work]) -> None:
        """Guess the token after the newest of every sample that decodes on."""
        following: list[int] = []
        wanted: list[tuple[Sample, int]] = []
        for w in work:
            sample, first = w.sample, len(following)
            after = sample.tokens[w.start + 1 : w.start + 1 + w.count]
            following += [*after, *[0] * (w.count - len(after))]
            left = sample.request.params.max_tokens - sample.generated
            if w.outputs and sample.running and left > 1:
                wanted.append((sample, first + sample.computed - 1 - w.start))
        guesses = self.runner.draft(following, [row for _, row in wanted])
        for (sample, _), guess in zip(wanted, guesses, strict=True):
            sample.draft = guess

    def _sample(self, request: Request, index: int) -> Sample:
        text = TextStream(self.table or [], request.params.stop)
        return Sample(request, index, list(request.prompt), text)

    def _note(self, sample: Sample, kind: EventKind, tokens: int) -> None:
        if self.config.max_events:
            who = (sample.request.id, sample.index)
            self.events.append(Event(self.now, self.counts.steps, *who, kind, tokens))


def _pages_for(model: R1Model, config: EngineConfig) -> int:
    pages = config.memory_bytes // page_bytes(model, config.page_size, config.speculate)
    if not pages:
        raise R1Error(
            f"engine.memory_bytes: {config.memory_bytes} hold not one page; give more"
        )
    return pages
