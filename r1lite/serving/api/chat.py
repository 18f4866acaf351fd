"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from r1lite.data import chat as template
from r1lite.errors import R1Error
from r1lite.serving.api.call import Call, Served
from r1lite.serving.api.errors import ApiError, where
from r1lite.serving.api.logprobs import chat_logprobs
from r1lite.serving.api.schema import ChatRequest, Message, StreamOptions
from r1lite.serving.api.stream import EventStream, whole
from r1lite.serving.reasoning import Part, ReasoningParser
from r1lite.serving.types import Delta

Reply = dict[str, Any]


async def chat_completions(
    served: Served, body: ChatRequest, http: Request
) -> Response:
    """Check, queue, and answer in the way that was asked for."""
    served.check_model(body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(
            400, "top_logprobs: needs logprobs; set it to true", param="top_logprobs"
        )
    options = body.chat_template_kwargs
    think = bool(options and (options.thinking or options.think))
    ids = await asyncio.to_thread(prompt_ids, served, body.messages, think)
    limit = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    params = served.params(body, len(ids), "messages", limit, getattr(body, limit))
    if body.logprobs:
        params = replace(params, logprobs=body.top_logprobs or 0)
    call = await served.begin("chatcmpl", [ids], params)
    answer = _Answer(call, think, bool(body.logprobs))
    if not body.stream:
        return await whole(http, call, answer.whole)
    return EventStream(call, answer.chunks(body.stream_options or StreamOptions()))


def prompt_ids(served: Served, messages: Sequence[Message], think: bool) -> list[int]:
    """The conversation as ids; text in it never becomes a control token."""
    turns = [
        {
            "role": "system" if m.role == "developer" else m.role,
            "content": m.text(),
            "reasoning_content": m.reasoning_content or m.reasoning,
        }
        for m in messages
    ]
    try:
        return template.render(served.tokenizer, turns, True, think)
    except R1Error as error:
        place, _, rest = str(error).partition(": ")
        name = where([int(p) if p.isdigit() else p for p in place.split(".")])
        raise ApiError(400, f"{name}: {rest}", "invalid_value", name) from error


class _Answer:
    """The n choices of one call, each with its reasoning taken apart."""

    def __init__(self, call: Call, think: bool, logprobs: bool) -> None:
        self.call, self.logprobs = call, logprobs
        self.parsers = [
            ReasoningParser(call.served.table, think) for _ in range(call.n)
        ]

    def _head(self, kind: str) -> Reply:
        return {
            "id": self.call.id,
            "object": kind,
            "created": self.call.created,
            "model": self.call.served.name,
        }

    def _read(self, delta: Delta) -> list[tuple[Part, str]]:
        pieces = self.parsers[delta.index].feed(delta.token_ids, delta.text)
        self.call.reasoning_tokens = sum(p.reasoning_tokens for p in self.parsers)
        return pieces

    def _scores(self, delta: Delta) -> list[Reply]:
        return chat_logprobs(self.call.served.table, delta.logprobs)

    async def whole(self) -> Reply:
        """One object when everything is there."""
        texts: list[dict[Part, str]] = [
            {"reasoning": "", "content": ""} for _ in self.parsers
        ]
        scores: list[list[Reply]] = [[] for _ in self.parsers]
        ends = ["length"] * self.call.n
        async for delta in self.call.deltas():
            for part, piece in self._read(delta):
                texts[delta.index][part] += piece
            scores[delta.index] += self._scores(delta)
            ends[delta.index] = delta.finish_reason or ends[delta.index]
        choices = [
            {
                "index": i,
                "message": _message(texts[i]),
                "logprobs": {"content": scores[i], "refusal": None}
                if self.logprobs
                else None,
                "finish_reason": ends[i],
            }
            for i in range(self.call.n)
        ]
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": self.call.usage()}

    async def chunks(self, options: StreamOptions) -> AsyncGenerator[Reply]:
        """`chat.completion.chunk` objects: a role, pieces, an end for each choice."""
        head = self._head("chat.completion.chunk")
        if options.include_usage:
            head["usage"] = None
        for i in range(self.call.n):
            role = {"role": "assistant", "content": ""}
            yield {**head, "choices": [_choice(i, role)]}
        async for delta in self.call.deltas():
            pieces = self._read(delta)
            scores = self._scores(delta)
            if options.continuous_usage_stats:
                head["usage"] = self.call.usage()
            if scores and not pieces:
                pieces = [("content", "")]
            for part, piece in pieces:
                said = {"content": piece}
                if part == "reasoning":
                    said = {"reasoning": piece, "reasoning_content": piece}
                yield {**head, "choices": [_choice(delta.index, said, scores)]}
                scores = []  # all with the first piece
            if delta.finish_reason:
                last = _choice(delta.index, {}, end=delta.finish_reason)
                yield {**head, "choices": [last]}
        if options.include_usage:
            yield {**head, "choices": [], "usage": self.call.usage()}


def _message(texts: dict[Part, str]) -> Reply:
    reasoning = texts["reasoning"] or None
    return {
        "role": "assistant",
        "content": texts["content"],
        "reasoning": reasoning,
        "reasoning_content": reasoning,
        "refusal": None,
    }


def _choice(
    index: int, said: Reply, scores: Sequence[Reply] = (), end: str | None = None
) -> Reply:
    logprobs = {"content": list(scores), "refusal": None} if scores else None
    return {"index": index, "delta": said, "logprobs": logprobs, "finish_reason": end}
