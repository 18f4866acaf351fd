"""Dynamic batching, the article's way (its section 5.2), with what it forgot.

Requests wait until `max_batch` of them are there or the first has waited
`max_wait` seconds, then run together. The article's batch came out empty when a
request alone was too large, and had no loop that decodes; this one has neither
fault. What it keeps is the scheme's own price, which continuous batching
(`engine.py`) does not pay: nobody joins a batch that runs, a row whose answer is
complete is computed until the last one is, and prompts are padded to the longest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.generation import left_pad
from r1lite.model import R1Model
from r1lite.serving.clock import Clock
from r1lite.serving.output import Row, accept, pick
from r1lite.serving.sequence import Request, Sample, check_prompt
from r1lite.serving.text import TextStream, byte_table
from r1lite.serving.types import Delta, Event, EventKind, SamplingParams, Usage


class DynamicBatcher:
    """Serves one model, one batch after the other. Used like `Engine`.

    A request's tokens leave together, when its whole batch is done.

    max_batch: most requests in a batch.
    max_wait: seconds that the first of a batch waits for company; math.inf waits
        until the batch is full, which is static batching.
    computed, wanted: tokens computed so far, and those of them that were neither
        padding nor after an answer's end.
    """

    def __init__(
        self,
        model: R1Model,
        tokenizer: R1Tokenizer | None = None,
        max_batch: int = 8,
        max_wait: float = 0.05,
        clock: Clock | None = None,
    ) -> None:
        if max_batch < 1 or max_wait < 0:
            raise R1Error("max_batch, max_wait: too small; give at least 1 and 0")
        self.model, self.clock = model.eval(), clock or Clock()
        self.table = byte_table(tokenizer) if tokenizer else None
        self.max_batch, self.max_wait = max_batch, max_wait
        self.waiting: deque[tuple[float, Sample]] = deque()
        self.batch: list[Sample] = []
        self.parts: dict[Sample, list[Delta]] = {}
        self.events: deque[Event] = deque(maxlen=4096)
        self.arrivals = self.steps = self.computed = self.wanted = 0
        self.closed = False

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
    ) -> str:
        """Queue a request; returns its id.

        Raises:
            R1Error: a bad prompt, n above 1, or more tokens than the context.
        """
        check_prompt(prompt_ids, self.model.config.vocab_size)
        if params.n > 1 or (params.stop and self.table is None):
            raise R1Error(
                "n, stop: a batch has one row for a request, and text only with a "
                "tokenizer; use Engine"
            )
        limit = self.model.config.max_position_embeddings
        if len(prompt_ids) + params.max_tokens > limit:
            raise R1Error(f"max_tokens: exceeds the context of {limit}; lower it")
        name = request_id or f"request-{self.arrivals}"
        self.arrivals += 1
        end = self.model.config.eos_token_id
        request = Request.new(name, prompt_ids, params, end)
        stream = TextStream(self.table or [], params.stop)
        sample = Sample(request, 0, list(prompt_ids), stream)
        self.now = self.clock.now()
        self.waiting.append((self.now, sample))
        self._note(sample, "queued", len(prompt_ids))
        return name

    @property
    def has_work(self) -> bool:
        """Whether anybody waits or runs."""
        return bool(self.batch or self.waiting)

    @property
    def due(self) -> float:
        """When a step will do something: a moment of the clock, inf if unknown."""
        if self.batch:
            return -math.inf
        if not self.waiting:
            return math.inf
        full = len(self.waiting) >= self.max_batch
        return self.waiting[0][0] + (0 if full or self.closed else self.max_wait)

    def close(self) -> None:
        """No request comes any more: a batch that is not full starts at once."""
        self.closed = True

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Delta]]:
        """Run the model once: a new batch's prompts, or a token for every row."""
        self.now = self.clock.now()
        if self.now < self.due:
            return []
        self.steps += 1
        hidden = self._decode() if self.batch else self._prefill()
        logits = self.model.lm_head(hidden[:, -1])
        self.now = self.clock.now()
        rows = [Row(sample, i) for i, sample in enumerate(self.batch)]
        picks = pick(rows, logits)
        self.last = [choice.token for choice in picks]
        for sample, choice in zip(self.batch, picks, strict=True):
            if not sample.done:
                delta = accept(sample, [choice])
                sample.done = delta.finish_reason is not None
                self.parts.setdefault(sample, []).append(delta)
                self._note(sample, "token", 1)
        return self._deliver() if all(s.done for s in self.batch) else []

    def _prefill(self) -> Tensor:
        """The states of a new batch's prompts, padded on the left."""
        count = min(self.max_batch, len(self.waiting))
        self.batch = [self.waiting.popleft()[1] for _ in range(count)]
        for sample in self.batch:
            self._note(sample, "scheduled", 0)
        prompts, config = [s.tokens for s in self.batch], self.model.config
        ids, mask = left_pad(prompts, config.pad_token_id or 0)
        new = max(s.request.params.max_tokens for s in self.batch)
        self.cache = self.model.new_cache(count, ids.shape[1] + new)
        self.mask = torch.cat([mask, mask.new_ones(count, new)], 1)
        self.mask = self.mask.to(self.model.embed_tokens.weight.device)
        self.place = self.mask[:, : ids.shape[1]].sum(-1)
        hidden = self._run(ids, None)
        for sample in self.batch:
            self._note(sample, "prefill", len(sample.tokens))
        self.wanted += sum(map(len, prompts))
        return hidden

    def _decode(self) -> Tensor:
        """The states of everybody's last token: of those who are done, too."""
        self.wanted += sum(not s.done for s in self.batch)
        hidden = self._run(torch.tensor(self.last)[:, None], self.place[:, None])
        self.place = self.place + 1
        return hidden

    def _run(self, ids: Tensor, places: Tensor | None) -> Tensor:
        width = self.cache.length + ids.shape[1]
        hidden = self.model.hidden(
            ids.to(self.mask.device),
            position_ids=places,
            attention_mask=self.mask[:, :width],
            cache=self.cache,
        )
        self.computed += ids.numel()
        self.clock.ran(ids.numel())
        self.now = self.clock.now()
        return hidden

    def _deliver(self) -> list[tuple[str, Delta]]:
        """Every request's whole answer; the batch is over."""
        outputs = []
        for sample in self.batch:
            self._note(sample, "finished", 0)
            outputs.append((sample.request.id, _whole(self.parts.pop(sample), sample)))
        self.batch = []
        return outputs

    def _note(self, sample: Sample, kind: EventKind, tokens: int) -> None:
        who = (sample.request.id, sample.index)
        self.events.append(Event(self.now, self.steps, *who, kind, tokens))


def _whole(parts: Sequence[Delta], sample: Sample) -> Delta:
    """All deltas of a sample that is alone in its request as one, with usage."""
    return Delta(
        sample.index,
        tuple(token for d in parts for token in d.token_ids),
        "".join(d.text for d in parts),
        tuple(score for d in parts for score in d.logprobs),
        parts[-1].finish_reason,
        Usage(len(sample.request.prompt), sample.generated),
    )
