"""POST /v1/completions: text continued as it stands, no template, no parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from r1lite.serving.api.call import Call, Served
from r1lite.serving.api.errors import ApiError
from r1lite.serving.api.logprobs import text_logprobs
from r1lite.serving.api.schema import CompletionRequest, StreamOptions
from r1lite.serving.api.stream import EventStream, whole
from r1lite.serving.types import Delta, TokenLogprob

DEFAULT_TOKENS = 16  # OpenAI's for this endpoint
Reply = dict[str, Any]


async def completions(
    served: Served, body: CompletionRequest, http: Request
) -> Response:
    """Check, queue, and answer in the way that was asked for."""
    served.check_model(body.model)
    prompts = await asyncio.to_thread(prompt_ids, served, body.prompt)
    longest = max(map(len, prompts))
    given = body.max_tokens or min(DEFAULT_TOKENS, max(served.context - longest, 1))
    params = served.params(body, longest, "prompt", "max_tokens", given)
    params = replace(params, logprobs=body.logprobs)
    call = await served.begin("cmpl", prompts, params)
    answer = _Answer(call, len(prompts) * params.n, body.logprobs is not None)
    if not body.stream:
        return await whole(http, call, answer.whole)
    return EventStream(call, answer.chunks(body.stream_options or StreamOptions()))


def prompt_ids(
    served: Served, prompt: str | Sequence[str] | Sequence[int] | Sequence[list[int]]
) -> list[list[int]]:
    """Each prompt's ids: text begins with the begin-of-text id, ids stay as given.

    Text never becomes a control token. Whoever sends ids chooses them all.
    """
    t = served.tokenizer
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    many: Any = [prompt] if one else prompt
    made: list[list[int]] = []
    for each in many:
        ids = [t.bos_id, *t.encode(each)] if isinstance(each, str) else list(each)
        if any(i >= t.vocab_size for i in ids):
            raise ApiError(
                400,
                f"prompt: holds an id that is not below {t.vocab_size}; use this "
                "model's tokenizer",
                "invalid_value",
                "prompt",
            )
        made.append(ids)
    return made


class _Answer:
    """The choices of one call."""

    def __init__(self, call: Call, count: int, logprobs: bool) -> None:
        self.call, self.count, self.logprobs = call, count, logprobs
        self._offsets = [0] * count

    def _head(self) -> Reply:
        return {
            "id": self.call.id,
            "object": "text_completion",
            "created": self.call.created,
            "model": self.call.served.name,
        }

    def _choice(
        self, i: int, text: str, scores: Sequence[TokenLogprob], end: str | None
    ) -> Reply:
        logprobs = None
        if self.logprobs:
            table = self.call.served.table
            logprobs = text_logprobs(table, scores, self._offsets[i])
            self._offsets[i] += sum(map(len, logprobs["tokens"]))
        return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": end}

    async def whole(self) -> Reply:
        """One object when everything is there."""
        deltas: list[list[Delta]] = [[] for _ in range(self.count)]
        async for delta in self.call.deltas():
            deltas[delta.index].append(delta)
        choices = [
            self._choice(
                i,
                "".join(d.text for d in own),
                [s for d in own for s in d.logprobs],
                own[-1].finish_reason,
            )
            for i, own in enumerate(deltas)
        ]
        return {**self._head(), "choices": choices, "usage": self.call.usage()}

    async def chunks(self, options: StreamOptions) -> AsyncGenerator[Reply]:
        """`text_completion` objects, each with the new text of one choice."""
        head = self._head()
        if options.include_usage:
            head["usage"] = None
        async for delta in self.call.deltas():
            if options.continuous_usage_stats:
                head["usage"] = self.call.usage()
            if delta.text or delta.logprobs or delta.finish_reason:
                choice = self._choice(
                    delta.index, delta.text, delta.logprobs, delta.finish_reason
                )
                yield {**head, "choices": [choice]}
        if options.include_usage:
            yield {**head, "choices": [], "usage": self.call.usage()}
