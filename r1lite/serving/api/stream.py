"""The two ways an answer leaves: at once as JSON, or piece by piece as SSE.

Both end the work at once when the client has gone or its time is up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from r1lite.serving.api.call import Call
from r1lite.serving.api.errors import ApiError

DONE = b"data: [DONE]\n\n"
LAST_WORDS = 5.0  # seconds for a client to take the news that its time is up
GONE = 499  # nginx's number for "the client closed the connection"; nobody reads it


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


async def whole(
    request: Request, call: Call, reply: Callable[[], Awaitable[dict[str, Any]]]
) -> Response:
    """The answer of `reply` as JSON."""
    work = asyncio.ensure_future(_in_time(call, reply))
    try:
        if not await _before_client_leaves(work, request.receive):
            return Response(status_code=GONE)
        return JSONResponse(await work)
    finally:
        await call.aclose()


async def _in_time(
    call: Call, reply: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    seconds = call.served.request_seconds
    try:
        async with asyncio.timeout(seconds):
            return await reply()
    except TimeoutError:
        raise _too_late(seconds) from None


def _too_late(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"server: not done after {seconds:g} s; ask for fewer tokens or try later",
        "timeout",
    )


async def _before_client_leaves(work: asyncio.Future[Any], receive: Receive) -> bool:
    """Wait for `work`; False if the client left first, and `work` is cancelled."""
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (gone, work):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """`chunks` as server-sent events, closed by `[DONE]`, also after an error."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, chunks: AsyncGenerator[dict[str, Any]]) -> None:
        # No proxy may hold the pieces back.
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._call, self._chunks = call, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until done; stop when the client has gone."""
        work = asyncio.ensure_future(self._send_all(send))
        try:
            if await _before_client_leaves(work, receive):
                await work
        except OSError:
            pass  # the connection broke while something was being sent
        finally:
            await self._call.aclose()

    async def _send_all(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )

        async def put(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        seconds = self._call.served.request_seconds
        try:
            async with asyncio.timeout(seconds), aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await put(event(chunk))
        except ApiError as error:
            await put(event(error.body))
        except TimeoutError:
            # Perhaps the client does not read: nothing may wait for it any more.
            await self._call.aclose()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await put(event(_too_late(seconds).body))
                    await put(DONE, more=False)
            return
        await put(DONE, more=False)
