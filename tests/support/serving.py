"""The real server without a network: the fixture model behind the ASGI app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import generate, left_pad
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.mtp import mtp_loss
from r1lite.serving.api.app import build_app
from r1lite.serving.asynchronous import AsyncEngine
from r1lite.serving.types import EngineConfig
from r1lite.tasks import stream

FIXTURE = Path(__file__).parents[2] / "chapters" / "fixtures" / "nano" / "grpo"
NAME = "nano"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = "In order, mod 10: 7+1*3+1"  # what the fixture was trained on; answer 5


@cache
def model() -> R1Model:
    """The fixture in 32 bits; with MTP module none."""
    return from_pretrained(FIXTURE, torch.float32)


@cache
def tokenizer() -> R1Tokenizer:
    """The fixture's."""
    return R1Tokenizer.load(FIXTURE)


@cache
def drafting_model(steps: int = 200, new: int = 48) -> R1Model:
    """The fixture with an MTP block that learnt the fixture's own answers.

    The trunk stays as it is. Answers to 64 questions, sampled at temperature 1.
    """
    problems = stream({f"chain/{level}": 1.0 for level in (3, 4, 5, 6)}, seed=0)
    prompts = [
        chat.prompt(tokenizer(), problems.problem_at(i).question) for i in range(64)
    ]
    config = model().config.with_(num_nextn_predict_layers=1)
    torch.manual_seed(0)
    made = R1Model(config)
    made.load_state_dict(model().state_dict(), strict=False)
    answers = generate(made, prompts, new, temperature=1.0, stop_ids=[])
    ids, mask = left_pad([p + a for p, a in zip(prompts, answers, strict=True)], 2)
    with torch.inference_mode():
        hidden = made.hidden(ids, attention_mask=mask)
    hidden, block = hidden.clone(), list(made.mtp.parameters())  # type: ignore
    optimizer = torch.optim.AdamW(block, lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * 16, step * 16 + 16) % len(ids)
        with torch.enable_grad():
            loss = mtp_loss(made, ids[rows], hidden[rows], attention_mask=mask[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


class Client(httpx.AsyncClient):
    """An HTTP client of one app, with what is behind the app at hand."""

    engine: AsyncEngine
    app: Any

    async def chat(self, content: str = QUESTION, **fields: Any) -> httpx.Response:
        """Ask one question."""
        return await self.post(CHAT, json=chat_body(content, **fields))

    async def settled(self) -> None:
        """Wait until no request and no page is in use; fails after 5 s."""
        async with asyncio.timeout(5):
            while self.busy():
                await asyncio.sleep(0.005)

    def busy(self) -> int:
        """Requests and pages in use."""
        stats = self.engine.stats()
        return stats.running + stats.waiting + stats.pages_used

    async def working(self, running: int = 1) -> None:
        """Wait until so many samples run."""
        async with asyncio.timeout(10):
            while self.engine.stats().running < running:
                await asyncio.sleep(0.002)


def chat_body(content: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    """A chat request, greedy unless told otherwise."""
    body = {"model": NAME, "messages": [{"role": "user", "content": content}]}
    return {**body, "temperature": 0, **fields}


@asynccontextmanager
async def client(
    engine_config: EngineConfig | None = None, **options: Any
) -> AsyncIterator[Client]:
    """The app with its engine running; `options` are those of `build_app`."""
    engine = AsyncEngine(
        model(), tokenizer(), engine_config or EngineConfig(num_pages=128)
    )
    app = build_app(engine, tokenizer(), NAME, 512, **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    made = Client(transport=transport, base_url="http://test")
    made.engine, made.app = engine, app
    async with app.router.lifespan_context(app), made:
        yield made


def with_client(work: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    """Run `work` with a fresh server; no page may be in use afterwards."""

    async def whole() -> Any:
        async with client(**options) as made:
            result = await work(made)
            await made.settled()
            return result

    return asyncio.run(whole())


def events(text: str) -> list[dict[str, Any]]:
    """The objects of a streamed answer, which must end with [DONE]."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""], text[-200:]
    assert all(p.startswith("data: ") for p in parts[:-1])
    return [json.loads(p.removeprefix("data: ")) for p in parts[:-2]]


def joined(chunks: list[dict[str, Any]], part: str, index: int = 0) -> str:
    """One part of a streamed chat answer."""
    return "".join(
        choice["delta"].get(part) or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def raw_request(
    path: str, body: bytes, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """An ASGI scope, for what httpx does not do: leave in the middle."""
    given = {"content-type": "application/json", **(headers or {})}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
