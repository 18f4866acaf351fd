"""`r1lite serve` as a process: OpenAI's client, signals, ports, directories."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.fuzz import fuzz
from support.live import FIXTURE, Live, command, environment, live
from support.serving import CHAT, QUESTION, chat_body

KEY = "secret"
LONG = {"max_tokens": 400, "ignore_eos": True}
TURN: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """One server for the tests that leave it as it was."""
    with live("--name", "nano", "--api-key", KEY, "--max-body-kb", "8") as running:
        yield running


@pytest.fixture
def client(server: Live) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_it_says_where_it_is(server: Live) -> None:
    (line,) = server.output.read_text().splitlines()
    assert line.startswith("serving nano (1.0 M parameters, context 512) on http://127")


def test_the_official_client_whole_and_streamed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["nano"]
    think: Any = {"chat_template_kwargs": {"thinking": True}}
    whole = client.chat.completions.create(
        model="nano", messages=TURN, temperature=0, extra_body=think
    )
    message: Any = whole.choices[0].message
    assert message.reasoning == message.reasoning_content != ""
    stream = client.chat.completions.create(
        model="nano",
        messages=TURN,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=think,
    )
    said = {"content": "", "reasoning": ""}
    for chunk in stream:
        for choice in chunk.choices:
            for part in said:
                said[part] += getattr(choice.delta, part, None) or ""
    assert said == {"content": message.content, "reasoning": message.reasoning}
    assert chunk.usage is not None and whole.usage is not None
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens
    # What came can be sent back as the client holds it.
    history = [*TURN, message.model_dump(), *TURN]
    again = client.chat.completions.create(
        model="nano", messages=history, temperature=0, max_completion_tokens=3
    )
    assert again.usage and again.usage.completion_tokens == 3


def test_the_official_client_text_scores_and_choices(client: openai.OpenAI) -> None:
    text = client.completions.create(
        model="nano", prompt=["1+1=", "2+2="], max_tokens=5, n=2, seed=1, logprobs=2
    )
    assert [c.index for c in text.choices] == [0, 1, 2, 3]
    assert text.choices[0].logprobs and text.choices[0].logprobs.tokens
    chat = client.chat.completions.create(
        model="nano",
        messages=TURN,
        logprobs=True,
        top_logprobs=2,
        max_tokens=3,
        stop="=",
    )
    scores = chat.choices[0].logprobs
    assert scores and scores.content and len(scores.content[0].top_logprobs) == 2


def test_the_official_client_understands_the_errors(
    client: openai.OpenAI, server: Live
) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-4", messages=TURN)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="ask for at most"):
        create(model="nano", messages=TURN, max_tokens=9999)
    with pytest.raises(openai.AuthenticationError, match="Bearer"):
        client.with_options(api_key="wrong").models.list()
    long: Any = [{"role": "user", "content": "x" * 9000}]
    with pytest.raises(openai.APIStatusError, match="larger than 8192") as large:
        create(model="nano", messages=long)
    assert large.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_connection_frees_its_pages(server: Live, stream: bool) -> None:
    before = server.metric("vllm:generation_tokens_total")
    raw = json.dumps(chat_body(model="nano", stream=stream, **LONG)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + raw)
        server.wait_for("vllm:num_requests_running", 1)
    server.wait_for("vllm:num_requests_running", 0)
    server.wait_for("vllm:kv_cache_usage_perc", 0)
    assert server.metric("vllm:generation_tokens_total") - before < 400


def test_requests_made_from_the_description_never_break_it(server: Live) -> None:
    """The recorded run is tests/benchmarks/fuzz_serving.py; this is a short one."""
    with live("--name", "nano") as other:  # without a key, or all would be 401
        answers = fuzz(other.url, 40, 1, "nano", tokens=2)
    assert sum(answers.values()) > 150
    assert sum(n for k, n in answers.items() if "completions 200" in k) > 0
    assert not [k for k in answers if k.split()[-1] >= "500"]


def test_sigterm_finishes_what_runs_and_exits_with_0() -> None:
    with live("--name", "nano") as server:
        replies: list[Any] = []

        def ask() -> None:
            body = chat_body(max_tokens=150, ignore_eos=True)
            replies.append(httpx.post(server.url + CHAT, json=body, timeout=60).json())

        asking = threading.Thread(target=ask)
        asking.start()
        server.wait_for("vllm:num_requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/ready")
        asking.join(60)
        assert server.process.wait(30) == 0
        assert replies[0]["usage"]["completion_tokens"] == 150
        assert "every answer was finished" in server.output.read_text()


def test_a_drain_that_takes_too_long_is_cut() -> None:
    with live("--name", "nano", "--drain-timeout", "0.2") as server:
        body = chat_body(stream=True, n=8, temperature=1, **LONG)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as reply:
            parts = reply.iter_text()
            next(parts)
            server.process.send_signal(signal.SIGTERM)
            rest = "".join(parts)
        assert '"code":"shutting_down"' in rest and rest.endswith("[DONE]\n\n")
        assert server.process.wait(30) == 0
        assert "were cut" in server.output.read_text()


def test_killed_and_started_again_on_the_same_port() -> None:
    with live("--name", "nano") as first:
        port = int(first.url.rpartition(":")[2])
        want = httpx.post(first.url + CHAT, json=chat_body(), timeout=60).json()
        body = chat_body(stream=True, **LONG)
        with (
            httpx.stream("POST", first.url + CHAT, json=body, timeout=60) as reply,
            pytest.raises(httpx.TransportError),
        ):
            for _ in reply.iter_bytes():
                first.process.kill()
        assert first.process.wait(10) == -signal.SIGKILL
        with live("--name", "nano", port=port) as second:
            got = httpx.post(second.url + CHAT, json=chat_body(), timeout=60).json()
            assert got["choices"] == want["choices"]
            assert second.stop() == 0


def refused(*options: str, directory: Path = FIXTURE) -> str:
    """The one line of a start that fails."""
    done = subprocess.run(
        command(*options, directory=directory),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_a_port_that_is_taken(server: Live) -> None:
    said = refused("--port", server.url.rpartition(":")[2])
    assert said.startswith("r1lite: 127.0.0.1:") and said.endswith("with --port")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: shutil.rmtree(f), "no such directory"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "tokenizer_config.json").write_text("{}"), "no chat template"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "no chat template"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    ],
)
def test_a_directory_that_is_no_chat_model(
    damage: Any, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FIXTURE, folder)
    damage(folder)
    said = refused("--port", "0", directory=folder)
    assert says in said and ";" in said


def test_an_address_that_is_none() -> None:
    assert "--host no.such.host.invalid" in refused("--host", "no.such.host.invalid")
    assert "--device" in refused("--device", "quantum", "--port", "0")
