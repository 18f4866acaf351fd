"""What a client gets: whole and streamed, one and many, scored and counted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.serving import (
    CHAT,
    NAME,
    QUESTION,
    TEXT,
    Client,
    chat_body,
    events,
    joined,
    model,
    tokenizer,
    with_client,
)

from r1lite.data import chat
from r1lite.generation import generate

T = tokenizer()


def greedy(think: bool = False) -> tuple[list[int], list[int]]:
    """(prompt, answer) as `r1lite.generate` makes them."""
    prompt = chat.prompt(T, QUESTION, think=think)
    return prompt, generate(model(), [prompt], max_new_tokens=200)[0]


def test_a_chat_answer_is_the_models_own() -> None:
    async def work(client: Client) -> Any:
        return (await client.chat()).json()

    reply = with_client(work)
    prompt, tokens = greedy()
    parsed = chat.parse(T, tokens)
    choice = reply["choices"][0]
    assert parsed.answer is not None and parsed.reasoning
    assert choice["message"] == {
        "role": "assistant",
        "content": parsed.answer,
        "reasoning": parsed.reasoning,
        "reasoning_content": parsed.reasoning,
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert reply["object"] == "chat.completion" and reply["model"] == NAME
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["completion_tokens"] == len(tokens)
    assert usage["total_tokens"] == len(prompt) + len(tokens)
    inside = tokens.index(T.think_end_id) - 1  # the first token is <think>
    assert usage["completion_tokens_details"] == {"reasoning_tokens": inside}


@pytest.mark.parametrize("kwargs", [{"thinking": True}, {"think": True}])
def test_thinking_can_be_forced(kwargs: dict[str, bool]) -> None:
    async def work(client: Client) -> Any:
        return (await client.chat(chat_template_kwargs=kwargs)).json()

    prompt, tokens = greedy(think=True)
    reply = with_client(work)
    parsed = chat.parse(T, tokens, forced_think=True)
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    message = reply["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (
        parsed.reasoning,
        parsed.answer,
    )


def test_streamed_and_whole_are_the_same() -> None:
    options = {"include_usage": True}

    async def work(client: Client) -> Any:
        for fields in (
            {},
            {"temperature": 1.0, "seed": 7},
            {"chat_template_kwargs": {"thinking": True}},
            {"n": 3, "temperature": 1.2, "seed": 1, "max_tokens": 20},
            {"logprobs": True, "top_logprobs": 2, "max_completion_tokens": 9},
            {"stop": ["="], "temperature": 0.7, "seed": 3},
        ):
            whole = (await client.chat(**fields)).json()
            streamed = await client.chat(stream=True, stream_options=options, **fields)
            assert streamed.headers["content-type"].startswith("text/event-stream")
            _compare(whole, events(streamed.text))

    with_client(work)


def _compare(whole: dict[str, Any], chunks: list[dict[str, Any]]) -> None:
    *body, last = chunks
    assert last["choices"] == []
    counted = ("prompt_tokens", "completion_tokens", "completion_tokens_details")
    assert all(last["usage"][k] == whole["usage"][k] for k in counted)
    assert all(c["usage"] is None for c in body)
    assert len({(c["id"], c["created"]) for c in chunks}) == 1
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    for choice in whole["choices"]:
        i, message = choice["index"], choice["message"]
        mine = [c["choices"][0] for c in body if c["choices"][0]["index"] == i]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert joined(chunks, "content", i) == message["content"]
        for name in ("reasoning", "reasoning_content"):
            assert joined(chunks, name, i) == (message[name] or "")
        ends = [c["finish_reason"] for c in mine]
        assert ends == [None] * (len(ends) - 1) + [choice["finish_reason"]]
        scores = [
            e for c in mine for e in (c["logprobs"] or {"content": []})["content"]
        ]
        assert scores == (choice["logprobs"] or {"content": []})["content"]


def test_stream_options_decide_about_usage() -> None:
    async def work(client: Client) -> Any:
        plain = events((await client.chat(stream=True)).text)
        assert not any("usage" in c for c in plain)
        options = {"continuous_usage_stats": True}
        chunks = events((await client.chat(stream=True, stream_options=options)).text)
        counts = [c["usage"]["completion_tokens"] for c in chunks if c.get("usage")]
        assert counts == sorted(counts) and counts[-1] == len(greedy()[1])

    with_client(work)


def test_choices_differ_and_a_seed_repeats_them() -> None:
    async def work(client: Client) -> Any:
        fields = {"n": 4, "temperature": 1.5, "seed": 11, "max_tokens": 24}
        first = (await client.chat(**fields)).json()
        again = (await client.chat(**fields)).json()
        other = (await client.chat(**{**fields, "seed": 12})).json()
        assert first["choices"] == again["choices"] != other["choices"]
        assert [c["index"] for c in first["choices"]] == [0, 1, 2, 3]
        texts = [json.dumps(c["message"]) for c in first["choices"]]
        assert len(set(texts)) > 1
        unseeded = [(await client.chat(**{**fields, "seed": None})).text for _ in "ab"]
        assert unseeded[0] != unseeded[1]

    with_client(work)


def test_length_and_stop_end_an_answer() -> None:
    async def work(client: Client) -> Any:
        cut = (await client.chat(max_tokens=3)).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 3
        assert cut["choices"][0]["message"]["content"] == ""  # still thinking
        both = await client.chat(max_tokens=100, max_completion_tokens=2)
        assert both.json()["usage"]["completion_tokens"] == 2
        stopped = (await client.chat(stop="=")).json()["choices"][0]
        assert stopped["finish_reason"] == "stop"
        reasoning = chat.parse(T, greedy()[1]).reasoning or ""
        assert stopped["message"]["reasoning"] == reasoning.partition("=")[0]

    with_client(work)


def test_logprobs_of_chat() -> None:
    async def work(client: Client) -> Any:
        fields = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
        return (await client.chat(**fields)).json()["choices"][0]["logprobs"]["content"]

    entries = with_client(work)
    tokens = greedy()[1][:6]
    assert [e["token"] for e in entries] == [T.decode([t]) for t in tokens]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        top = [t["logprob"] for t in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert entry["logprob"] == top[0] <= 0  # greedy takes the best
        assert entry["top_logprobs"][0]["token"] == entry["token"]


def test_logprobs_of_text_count_characters() -> None:
    async def work(client: Client) -> Any:
        body = {"model": NAME, "prompt": QUESTION, "seed": 2, "ignore_eos": True}
        reply = await client.post(TEXT, json={**body, "logprobs": 2, "max_tokens": 12})
        return reply.json()["choices"][0]

    choice = with_client(work)
    scores = choice["logprobs"]
    assert len(scores["tokens"]) == 12
    assert "".join(scores["tokens"]) == choice["text"]
    want = [sum(map(len, scores["tokens"][:i])) for i in range(12)]
    assert scores["text_offset"] == want
    assert all(len(top) <= 2 for top in scores["top_logprobs"])


def test_completions_take_text_lists_and_ids() -> None:
    prompt = [T.bos_id, *T.encode("1+1=")]

    async def ask(client: Client, given: Any, **fields: Any) -> Any:
        body = {"model": NAME, "prompt": given, "temperature": 0, **fields}
        return (await client.post(TEXT, json=body)).json()

    async def work(client: Client) -> Any:
        text = await ask(client, "1+1=")
        made = generate(model(), [prompt], max_new_tokens=16)[0]
        assert text["usage"]["completion_tokens"] == len(made)  # 16 by default
        shown = [t for t in made if t != T.eos_id]
        assert text["choices"][0]["text"] == T.decode(shown)
        assert (await ask(client, prompt))["choices"] == text["choices"]
        both = await ask(client, ["1+1=", "2+2="], n=2)
        assert [c["index"] for c in both["choices"]] == [0, 1, 2, 3]
        assert both["choices"][1]["text"] == text["choices"][0]["text"]
        ids = [prompt, [T.bos_id, *T.encode("2+2=")]]
        assert (await ask(client, ids, n=2))["choices"] == both["choices"]
        assert both["usage"]["prompt_tokens"] == 2 * len(prompt)
        body = {"model": NAME, "prompt": ["1+1=", "2+2="], "temperature": 0}
        streamed = await client.post(TEXT, json={**body, "n": 2, "stream": True})
        for choice in both["choices"]:
            mine = [
                c["choices"][0]
                for c in events(streamed.text)
                if c["choices"][0]["index"] == choice["index"]
            ]
            assert "".join(c["text"] for c in mine) == choice["text"]
            assert mine[-1]["finish_reason"] == choice["finish_reason"]

    with_client(work)


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    async def work(client: Client) -> Any:
        first = (await client.chat()).json()
        history = [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            first["choices"][0]["message"],
            {"role": "user", "content": "again"},
        ]
        reply = await client.post(CHAT, json={**chat_body(), "messages": history})
        assert reply.status_code == 200, reply.text
        answer = first["choices"][0]["message"]["content"]
        turns = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "again"},
        ]
        want = len(chat.render(T, turns))
        assert reply.json()["usage"]["prompt_tokens"] == want

    with_client(work)


def test_models() -> None:
    async def work(client: Client) -> Any:
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert card["id"] == NAME and card["max_model_len"] == 512
        assert (await client.get(f"/v1/models/{NAME}")).json() == card
        missing = await client.get("/v1/models/a/b")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"

    with_client(work)


def test_the_same_request_gives_the_same_answer_in_any_company() -> None:
    async def work(client: Client) -> Any:
        fields = {"temperature": 1.0, "seed": 5, "max_tokens": 30}
        alone = (await client.chat(**fields)).json()["choices"]
        others = [
            client.chat("In order, mod 10: 3-3-8", max_tokens=20) for _ in range(5)
        ]
        replies = await asyncio.gather(client.chat(**fields), *others)
        assert replies[0].json()["choices"] == alone

    with_client(work)
