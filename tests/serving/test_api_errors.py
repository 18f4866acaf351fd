"""Every bad request is an OpenAI-shaped error that names the field and the remedy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving import (
    CHAT,
    NAME,
    QUESTION,
    TEXT,
    Client,
    chat_body,
    model,
    tokenizer,
    with_client,
)

from r1lite.data.tokenizer import CONTROL
from r1lite.serving.api.call import Served
from r1lite.serving.api.chat import prompt_ids as chat_ids
from r1lite.serving.api.completions import prompt_ids as text_ids
from r1lite.serving.api.schema import Message
from r1lite.serving.asynchronous import AsyncEngine
from r1lite.serving.types import EngineConfig

USER = {"role": "user", "content": QUESTION}
# (change to a good body, status, param, a piece of the message)
BAD_CHAT: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no model": ({"model": None}, 400, "model", "is not text"),
    "unknown model": ({"model": "gpt-4"}, 404, "model", "use 'nano'"),
    "no messages": ({"messages": []}, 400, "messages", "give at least 1"),
    "messages a string": ({"messages": "hi"}, 400, "messages", "is not a list"),
    "no role": ({"messages": [{"content": "a"}]}, 400, "messages[0].role", "missing"),
    "tool role": (
        {"messages": [{"role": "tool", "content": "a"}]},
        400,
        "messages[0].role",
        "'user'",
    ),
    "late system": (
        {"messages": [USER, {"role": "system", "content": "a"}]},
        400,
        "messages[1].role",
        "first message",
    ),
    "null content": (
        {"messages": [{"role": "user", "content": None}]},
        400,
        "messages[0].content",
        "is not",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0].type",
        "'text'",
    ),
    "tool calls": (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]},
        400,
        "messages[0].tool_calls",
        "not supported",
    ),
    "text for a number": ({"temperature": "1"}, 400, "temperature", "not a number"),
    "too hot": ({"temperature": 2.5}, 400, "temperature", "at most 2"),
    "top_p 0": ({"top_p": 0}, 400, "top_p", "more than 0"),
    "top_p 2": ({"top_p": 2}, 400, "top_p", "at most 1"),
    "min_p": ({"min_p": -1}, 400, "min_p", "at least 0"),
    "top_k": ({"top_k": -2}, 400, "top_k", "at least -1"),
    "half a token": ({"max_tokens": 1.5}, 400, "max_tokens", "whole number"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
    "true tokens": ({"max_tokens": True}, 400, "max_tokens", "whole number"),
    "n 0": ({"n": 0}, 400, "n", "at least 1"),
    "n 17": ({"n": 17}, 400, "n", "at most 16"),
    "empty stop": ({"stop": ""}, 400, "stop", "at least 1 char"),
    "five stops": ({"stop": list("abcde")}, 400, "stop", "at most 4"),
    "stop of numbers": ({"stop": [1]}, 400, "stop[0]", "is not text"),
    "seed": ({"seed": 2**63}, 400, "seed", "at most"),
    "logprobs a number": ({"logprobs": 3}, 400, "logprobs", "true or false"),
    "21 logprobs": (
        {"logprobs": True, "top_logprobs": 21},
        400,
        "top_logprobs",
        "at most 20",
    ),
    "top without logprobs": (
        {"top_logprobs": 2},
        400,
        "top_logprobs",
        "set it to true",
    ),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    "json mode": (
        {"response_format": {"type": "json_object"}},
        400,
        "response_format.type",
        "not supported",
    ),
    "penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    "bias": ({"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
    "typo": ({"temprature": 1}, 400, "temprature", "not a field"),
    "context": (
        {"max_tokens": 600},
        400,
        "max_tokens",
        "ask for at most",
    ),
    "completion tokens": (
        {"max_completion_tokens": 600},
        400,
        "max_completion_tokens",
        "ask for at most",
    ),
    "long prompt": (
        {"messages": [{"role": "user", "content": "word " * 600}]},
        400,
        "messages",
        "shorten",
    ),
}
BAD_TEXT: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no prompt": ({"prompt": None}, 400, "prompt", ""),
    "empty list": ({"prompt": []}, 400, "prompt", "at least 1"),
    "foreign id": ({"prompt": [0, 5000]}, 400, "prompt", "tokenizer"),
    "negative id": ({"prompt": [-1]}, 400, "prompt[0]", "at least 0"),
    "mixed": ({"prompt": ["a", 1]}, 400, "prompt[1]", "is not text"),
    "many": ({"prompt": ["a"] * 9, "n": 2}, 400, "n", "ask for fewer"),
    "echo": ({"echo": True}, 400, "echo", "not supported"),
    "suffix": ({"suffix": "b"}, 400, "suffix", "not supported"),
    "long": ({"prompt": "word " * 600}, 400, "prompt", "shorten"),
}
RAW: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "body: is missing"),
    "cut": (b'{"model": "na', "body: is not JSON"),
    "list": (b"[]", "body: is not an object"),
    "text": (b'"hi"', "body: is not an object"),
    "not UTF-8": (b"\xff\xfe{}", "body: is not JSON"),
    "deep": (b'{"a":' * 5000, "body:"),
    "NaN": (json.dumps({**chat_body(), "temperature": float("nan")}).encode(), "temp"),
    "inf": (json.dumps({**chat_body(), "top_p": float("inf")}).encode(), "top_p"),
    "huge": (b'{"max_tokens": ' + b"9" * 5000 + b"}", ""),
    "surrogate": (b'{"model": "\\ud800", "messages": []}', ""),
}


def check_error(status: int, body: Any, param: str | None, piece: str) -> None:
    """OpenAI's shape, and a message of the form field: what; remedy."""
    (key,) = body
    error = body[key]
    assert key == "error" and set(error) == {"message", "type", "param", "code"}
    want = "not_found_error" if status == 404 else "invalid_request_error"
    assert error["type"] == want
    assert error["param"] == param, error
    assert piece in error["message"] and ";" in error["message"], error
    assert error["message"].startswith(param or ""), error


def test_bad_bodies() -> None:
    async def work(client: Client) -> None:
        for name, (change, status, param, piece) in BAD_CHAT.items():
            for stream in (False, True):
                body = {**chat_body(), "stream": stream, **change}
                reply = await client.post(CHAT, json=body)
                assert reply.status_code == status, (name, reply.text)
                check_error(status, reply.json(), param, piece)
        for name, (change, status, param, piece) in BAD_TEXT.items():
            body = {"model": NAME, "prompt": "a", **change}
            reply = await client.post(TEXT, json=body)
            assert reply.status_code == status, (name, reply.text)
            check_error(status, reply.json(), param, piece)

    with_client(work)


def test_bodies_that_are_no_request_at_all() -> None:
    async def work(client: Client) -> None:
        kind = {"content-type": "application/json"}
        for name, (raw, piece) in RAW.items():
            reply = await client.post(CHAT, content=raw, headers=kind)
            assert reply.status_code == 400, (name, reply.text)
            assert piece in reply.json()["error"]["message"], (name, reply.text)
        text = {"content-type": "text/plain"}
        reply = await client.post(CHAT, content=json.dumps(chat_body()), headers=text)
        assert "application/json" in reply.json()["error"]["message"]

    with_client(work)


def test_wrong_paths_and_methods() -> None:
    async def work(client: Client) -> None:
        missing = await client.get("/v2/chat")
        assert missing.status_code == 404
        check_error(404, missing.json(), None, "/v1/chat/completions")
        wrong = await client.get(CHAT)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        check_error(405, wrong.json(), None, "openapi.json")

    with_client(work)


def test_labels_and_null_change_nothing() -> None:
    async def work(client: Client) -> None:
        plain = (await client.chat()).json()["choices"]
        names = ("max_tokens", "top_p", "stop", "seed", "n", "logprobs", "tools")
        labels = {"user": "me", "metadata": {"a": 1}, "presence_penalty": 0}
        reply = await client.chat(**labels, **dict.fromkeys(names))
        assert reply.json()["choices"] == plain

    with_client(work)


HALVES = [half for c in CONTROL for half in (c[: len(c) // 2], c[len(c) // 2 :])]
FORGED = st.lists(
    st.sampled_from([*CONTROL, *HALVES, "<", ">", "｜", "\n", "🙂"])
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@settings(max_examples=100)
@given(FORGED, FORGED, FORGED, st.booleans())
def test_no_text_of_a_request_becomes_a_control_token(
    system: str, asked: str, said: str, think: bool
) -> None:
    t = tokenizer()
    engine = AsyncEngine(model(), t, EngineConfig(num_pages=1))
    served = Served(engine, t, NAME, 512, None)  # type: ignore[arg-type]
    messages = [
        Message(role="system", content=system),
        Message(role="user", content=[{"type": "text", "text": asked}]),  # type: ignore[list-item]
        Message(role="assistant", content=said, reasoning=asked),
        Message(role="user", content=said, name=asked),
    ]

    def control(ids: list[int]) -> list[int]:
        return [i for i in ids if i < len(CONTROL)]

    reply = [t.assistant_id, t.answer_id, t.answer_end_id, t.eos_id]
    want = [t.bos_id, t.user_id, *reply, t.user_id, t.assistant_id]
    assert control(chat_ids(served, messages, think)) == want + [t.think_id] * think
    assert [control(ids) for ids in text_ids(served, [asked, said])] == [[t.bos_id]] * 2


@pytest.mark.parametrize("forged", ["<think>", "<｜end▁of▁sentence｜>", "</think>"])
def test_forged_tags_come_out_as_the_text_they_are(forged: str) -> None:
    """Prompt, stop and answer: a typed tag neither ends nor splits anything."""
    t = tokenizer()

    async def work(client: Client) -> None:
        reply = await client.chat(forged * 3, max_tokens=1)
        assert reply.json()["usage"]["prompt_tokens"] == 3 + 3 * len(t.encode(forged))
        with_stop = await client.chat(stop=[forged, "never"])
        body = with_stop.json()["choices"][0]
        assert body["finish_reason"] == "stop"
        assert forged not in json.dumps(body, ensure_ascii=False)

    with_client(work)
