"""Keys, sizes, queues, clocks, clients that leave, and the way down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.serving import (
    CHAT,
    NAME,
    Client,
    chat_body,
    events,
    raw_request,
    with_client,
)

from r1lite.serving.api import stream as sse
from r1lite.serving.api.app import Limits
from r1lite.serving.types import EngineConfig

LONG = {"max_tokens": 400, "ignore_eos": True}
KEY = "k-ä-1"


def error(reply: Any) -> dict[str, Any]:
    return reply.json()["error"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer  {KEY}"}, 200),
    ],
)
def test_the_key_opens_v1_and_nothing_else_asks_for_it(
    header: dict[str, str], status: int
) -> None:
    sent = {k: v.encode() for k, v in header.items()}

    async def work(client: Client) -> None:
        reply = await client.get("/v1/models", headers=sent)
        assert reply.status_code == status
        if status == 401:
            assert error(reply)["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
            # Refused before the body: what is sent does not matter.
            bad = await client.post(CHAT, content=b"x" * 100, headers=sent)
            assert bad.status_code == 401
            double = await client.get("//v1/models", headers=sent)
            assert double.status_code in (401, 404)
        for path in ("/health", "/ready", "/metrics", "/", "/page/chat.js"):
            assert (await client.get(path)).status_code == 200, path
        about = (await client.get("/page/about")).json()
        assert about["key"] is True and KEY not in json.dumps(about)

    with_client(work, api_key=KEY)


def test_a_body_above_the_limit_is_413_declared_or_not() -> None:
    async def pieces() -> Any:
        for _ in range(30):
            yield b" " * 100

    async def work(client: Client) -> None:
        kind = {"content-type": "application/json"}
        for body in (b" " * 3000, pieces()):
            reply = await client.post(CHAT, content=body, headers=kind)
            assert reply.status_code == 413
            assert error(reply)["code"] == "body_too_large"
            assert "2000 bytes" in error(reply)["message"]
        assert (await client.chat(max_tokens=1)).status_code == 200

    with_client(work, limits=Limits(body_bytes=2000))


def test_a_body_that_does_not_come_is_408() -> None:
    async def work(client: Client) -> None:
        sent: list[Any] = []

        async def never() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        await client.app(raw_request(CHAT, b""), never, send)
        assert sent[0]["status"] == 408
        assert b"not complete after 0.05 s" in sent[1]["body"]

    with_client(work, limits=Limits(body_seconds=0.05))


def test_a_full_queue_is_429_with_the_time_to_come_back() -> None:
    config = EngineConfig(num_pages=128, max_running=1, max_waiting=2)

    async def work(client: Client) -> None:
        first = asyncio.create_task(client.chat(**LONG))
        await client.working()
        rest = [asyncio.create_task(client.chat(max_tokens=2)) for _ in range(6)]
        codes = []
        for task in asyncio.as_completed(rest):
            reply = await task
            codes.append(reply.status_code)
            if reply.status_code == 429:
                assert int(reply.headers["retry-after"]) >= 1
                assert error(reply)["type"] == "rate_limit_error"
                assert error(reply)["code"] == "queue_full"
        assert sorted(codes) == [200, 200, 429, 429, 429, 429]
        assert (await first).status_code == 200

    with_client(work, engine_config=config)


def test_prompts_of_one_request_are_queued_all_or_none() -> None:
    config = EngineConfig(num_pages=128, max_running=1, max_waiting=2)

    async def work(client: Client) -> None:
        body = {"model": NAME, "prompt": ["a"] * 5, "max_tokens": 300}
        reply = await client.post("/v1/completions", json=body)
        assert reply.status_code == 429
        await client.settled()
        text = (await client.get("/metrics")).text  # a refusal is no latency
        assert 'e2e_request_latency_seconds_count{model_name="nano"} 0.0' in text

    with_client(work, engine_config=config)


def test_time_that_is_up_ends_the_answer_and_frees_its_pages() -> None:
    async def work(client: Client) -> None:
        reply = await client.chat(**LONG)
        assert reply.status_code == 504 and error(reply)["code"] == "timeout"
        await client.settled()
        streamed = await client.chat(stream=True, **LONG)
        last = events(streamed.text)[-1]
        assert last["error"]["type"] == "timeout_error"
        await client.settled()

    with_client(work, limits=Limits(request_seconds=0.3))


def test_a_client_that_does_not_read_cannot_hold_its_pages() -> None:
    """Its connection is full; when its time is up the work ends all the same."""

    async def work(client: Client) -> None:
        body = json.dumps(chat_body(stream=True, **LONG)).encode()
        pending = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            return pending.pop() if pending else await asyncio.sleep(60)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        reading = asyncio.ensure_future(
            client.app(raw_request(CHAT, body), receive, send)
        )
        await client.working()
        await client.settled()
        await asyncio.wait_for(reading, 5)
        assert client.engine.stats().finished["abort"] == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "LAST_WORDS", 0.1)
        with_client(work, limits=Limits(request_seconds=0.5))


async def leave(client: Client, body: dict[str, Any], when: Callable[[], bool]) -> None:
    """Send a request and break the connection once `when` holds."""
    raw = json.dumps(body).encode()
    pending = [{"type": "http.request", "body": raw}]

    async def receive() -> Any:
        if pending:
            return pending.pop()
        async with asyncio.timeout(20):
            while not when():
                await asyncio.sleep(0.002)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    await client.app(raw_request(CHAT, raw), receive, send)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_takes_its_request_along(stream: bool, n: int) -> None:
    body = chat_body(stream=stream, n=n, temperature=1, **LONG)

    async def work(client: Client) -> None:
        def decoding() -> bool:
            return client.engine.stats().generated_tokens >= 5 * n

        await leave(client, body, decoding)
        await client.settled()
        stats = client.engine.stats()
        assert stats.finished == {"stop": 0, "length": 0, "abort": n}
        assert stats.generated_tokens < 400 * n

    with_client(work)


def test_a_client_that_leaves_the_queue_never_runs() -> None:
    config = EngineConfig(num_pages=128, max_running=1)

    async def work(client: Client) -> None:
        first = asyncio.create_task(client.chat(max_tokens=60, ignore_eos=True))
        await client.working()
        await leave(
            client, chat_body(**LONG), lambda: client.engine.stats().waiting > 0
        )
        assert (await first).json()["usage"]["completion_tokens"] == 60
        await client.settled()
        assert client.engine.stats().generated_tokens == 60

    with_client(work, engine_config=config)


def test_a_client_that_leaves_before_its_body_is_complete() -> None:
    async def work(client: Client) -> None:
        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        await client.app(raw_request(CHAT, b""), receive, send)

    with_client(work)


def test_going_down_refuses_new_work_and_finishes_the_old() -> None:
    async def work(client: Client) -> None:
        old = asyncio.create_task(client.chat(max_tokens=40, ignore_eos=True))
        await client.working()
        client.app.state.served.draining = True
        new = await client.chat()
        assert new.status_code == 503 and error(new)["code"] == "shutting_down"
        assert "retry-after" in new.headers
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert await client.engine.drain(10)
        assert (await old).json()["usage"]["completion_tokens"] == 40

    with_client(work)


@pytest.mark.parametrize("stream", [False, True])
def test_what_outlasts_the_drain_is_told_so(stream: bool) -> None:
    async def work(client: Client) -> None:
        old = asyncio.create_task(client.chat(stream=stream, **LONG))
        await client.working()
        assert not await client.engine.drain(0)
        reply = await old
        if stream:
            assert events(reply.text)[-1]["error"]["code"] == "shutting_down"
        else:
            assert (reply.status_code, error(reply)["code"]) == (503, "shutting_down")

    with_client(work)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_is_a_500_and_then_no_longer_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(client: Client) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("no memory")

        monkeypatch.setattr(client.engine.engine.runner, "run", broken)
        reply = await client.chat()
        assert reply.status_code == 500 and "engine failed" in error(reply)["message"]
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/ready")).status_code == 503
        assert (await client.chat()).status_code == 503
        monkeypatch.undo()
        client.busy = lambda: 0  # type: ignore[method-assign]  # nothing to settle

    with_client(work)


def test_metrics_count_what_happened() -> None:
    async def work(client: Client) -> None:
        usage = (await client.chat()).json()["usage"]
        await client.chat(max_tokens=2, stream=True)
        await client.chat(temperature=9)
        await client.get("/etc/passwd")
        await client.settled()
        text = (await client.get("/metrics")).text
        value = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if not line.startswith("#")
        }
        own = '{model_name="nano"}'
        made = usage["completion_tokens"] + 2
        assert value["vllm:generation_tokens_total" + own] == made
        assert value["vllm:prompt_tokens_total" + own] == 2 * usage["prompt_tokens"]
        for name in ("num_requests_running", "num_requests_waiting"):
            assert value[f"vllm:{name}{own}"] == 0
        assert value["vllm:time_to_first_token_seconds_count" + own] == 2
        assert value["vllm:inter_token_latency_seconds_count" + own] == made - 2
        assert value["vllm:e2e_request_latency_seconds_count" + own] == 2
        assert value["vllm:request_generation_tokens_sum" + own] == made
        parts = ("queue", "prefill", "decode")
        for part in parts:
            assert value[f"vllm:request_{part}_time_seconds_count{own}"] == 2
        spent = sum(value[f"vllm:request_{p}_time_seconds_sum{own}"] for p in parts)
        assert 0 < spent <= value["vllm:e2e_request_latency_seconds_sum" + own]
        for reason in ("stop", "length"):
            labels = f'{{finished_reason="{reason}",model_name="nano"}}'
            assert value["vllm:request_success_total" + labels] == 1
        chats = 'http_requests_total{handler="/v1/chat/completions",method="POST",'
        assert value[chats + 'status="200"}'] == 2
        assert value[chats + 'status="400"}'] == 1
        other = 'http_requests_total{handler="other",method="GET",status="404"}'
        assert value[other] == 1 and "passwd" not in text

    with_client(work)


def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async def work(client: Client) -> None:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "http" not in policy
        for name in ("chat.js", "sse.js", "view.js", "settings.js", "chat.css"):
            part = await client.get(f"/page/{name}")
            assert part.status_code == 200
            assert part.headers["x-content-type-options"] == "nosniff"
            assert "innerHTML" not in part.text and "://" not in part.text
        for name in ("../app.py", "%2e%2e%2fapp.py", "index.html", "x"):
            assert (await client.get(f"/page/{name}")).status_code == 404

    with_client(work)
