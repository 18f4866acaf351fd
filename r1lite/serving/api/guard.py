"""What a request must pass before its body is read by anyone: key, size, time."""

from __future__ import annotations

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1lite.serving.api.errors import ApiError

PROTECTED = "/v1"  # health, metrics and the page's own files need no key


class Guard:
    """ASGI middleware: 401 without the key, 413 above the limit, 408 when slow.

    The body is held here until it is complete, so that nothing behind this
    ever waits for a slow sender.
    """

    def __init__(
        self, app: ASGIApp, api_key: str | None, body_bytes: int, body_seconds: float
    ) -> None:
        self.app, self.body_bytes, self.body_seconds = app, body_bytes, body_seconds
        self.api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on with its whole body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._check_key(scope)
            self._check_length(_header(scope, b"content-length"))
            body = await asyncio.wait_for(self._read(receive), self.body_seconds)
        except TimeoutError:
            late = ApiError(
                408, f"body: not complete after {self.body_seconds:g} s; send it again"
            )
            return await late.response()(scope, receive, send)
        except ApiError as refused:
            return await refused.response()(scope, receive, send)
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if self.api_key is None or not f"{path}/".startswith(f"{PROTECTED}/"):
            return
        kind, _, given = _header(scope, b"authorization").partition(b" ")
        # compare_digest takes the same time wherever the first difference is.
        good = hmac.compare_digest(given.strip(), self.api_key)
        if kind.lower() != b"bearer" or not good:
            raise ApiError(
                401,
                "Authorization: no key or a wrong one; send `Authorization: Bearer "
                "KEY` with the key that the server was started with",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, given: bytes) -> None:
        if given.isdigit() and int(given) > self.body_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None if the client left before it was complete."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self.body_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"body: larger than {self.body_bytes} bytes; shorten the messages",
            "body_too_large",
            headers={"Connection": "close"},
        )


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once and then what the client does."""
    pending: list[Message] = [{"type": "http.request", "body": body}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
