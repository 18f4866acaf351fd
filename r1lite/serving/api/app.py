"""The application: routes, the page, and what stands before and around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1lite import __version__
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.serving.api import errors, schema
from r1lite.serving.api.call import DRAINING, Served
from r1lite.serving.api.chat import chat_completions
from r1lite.serving.api.completions import completions
from r1lite.serving.api.errors import ApiError, ErrorReply
from r1lite.serving.api.guard import Guard
from r1lite.serving.api.metrics import Metrics
from r1lite.serving.api.replies import (
    ChatReply,
    CompletionReply,
    ModelCard,
    ModelList,
    State,
)
from r1lite.serving.asynchronous import AsyncEngine

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PAGE = Path(__file__).parents[1] / "page"
PAGE_FILES = {
    "chat.css": "text/css",
    "chat.js": "text/javascript",
    "settings.js": "text/javascript",
    "sse.js": "text/javascript",
    "view.js": "text/javascript",
    "mark.svg": "image/svg+xml",
}
# The page may load its own files and ask its own server, and nothing else.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src "
    "'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """What one client may cost.

    body_bytes: of a request; more is 413. body_seconds: until it is complete.
    request_seconds: until an answer is complete, waiting included.
    """

    body_bytes: int = 2**20
    body_seconds: float = 30.0
    request_seconds: float = 600.0


def build_app(
    engine: AsyncEngine,
    tokenizer: R1Tokenizer,
    name: str,
    context: int,
    api_key: str | None = None,
    limits: Limits | None = None,
    examples: Sequence[str] = (),
) -> FastAPI:
    """The server of one model. Starts the engine with itself and stops it.

    context: most tokens of a prompt and its answer together.
    examples: what the chat page offers to ask.
    """
    limits = limits or Limits()
    metrics = Metrics(name, engine.stats)
    served = Served(engine, tokenizer, name, context, metrics, limits.request_seconds)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        served.draining = True
        await engine.stop()

    # No docs pages: FastAPI's load their scripts from another host.
    app = FastAPI(
        title="R1-lite",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    app.state.served = served
    errors.install(app, _field_names())
    _api_routes(app, served)
    _state_routes(app, served)
    about = {"model": name, "context": context, "key": api_key is not None}
    _page_routes(app, {**about, "examples": list(examples)})
    app.add_middleware(
        Guard,
        api_key=api_key,
        body_bytes=limits.body_bytes,
        body_seconds=limits.body_seconds,
    )
    app.add_middleware(_Counted, metrics=metrics)
    return app


def _field_names() -> set[str]:
    """Every field a body can have, for the places of errors."""
    models = [
        m
        for m in vars(schema).values()
        if isinstance(m, type) and issubclass(m, BaseModel)
    ]
    return {name for m in models for name in m.model_fields}


def _said(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply} for status in statuses}


def _api_routes(app: FastAPI, served: Served) -> None:
    answers = _said(400, 401, 404, 408, 413, 422, 429, 500, 503, 504)
    streamed: dict[str, Any] = {"content": {"text/event-stream": {}}}

    @app.post(
        "/v1/chat/completions",
        responses={200: {"model": ChatReply, **streamed}, **answers},
        response_model=None,
    )
    async def chat(body: schema.ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await chat_completions(served, body, request)

    @app.post(
        "/v1/completions",
        responses={200: {"model": CompletionReply, **streamed}, **answers},
        response_model=None,
    )
    async def complete(body: schema.CompletionRequest, request: Request) -> Response:
        """Continue text."""
        return await completions(served, body, request)

    card = ModelCard(
        id=served.name, created=served.created, max_model_len=served.context
    )

    @app.get("/v1/models", responses=_said(401))
    async def models() -> ModelList:
        """The one model."""
        return ModelList(data=[card])

    @app.get("/v1/models/{model:path}", responses=_said(401, 404))
    async def model(model: str) -> ModelCard:
        """The one model by its name."""
        served.check_model(model)
        return card


def _state_routes(app: FastAPI, served: Served) -> None:
    ok = State(status="ok")

    @app.get("/health", responses=_said(503))
    async def health() -> State:
        """Whether the process should live: 503 once the engine has failed."""
        if not served.engine.healthy:
            raise ApiError(503, "server: the engine has stopped; restart it")
        return ok

    @app.get("/ready", responses=_said(503))
    async def ready() -> State:
        """Whether to send requests here: 503 also while shutting down."""
        if served.draining:
            raise DRAINING
        return await health()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus, under vLLM's names."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(served.metrics.text(), media_type=kind)


def _page_routes(app: FastAPI, about: dict[str, Any]) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    @app.get("/page/about", include_in_schema=False)
    async def tell() -> dict[str, Any]:
        return about

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> FileResponse:
        if name not in PAGE_FILES:
            raise ApiError(404, "page: no such file; GET / for the chat page")
        return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers=HEADERS)


class _Counted:
    """Counts answers by path and status; unknown paths count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on and look at the status."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.http.labels(path, method, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, watched)
