"""Errors as OpenAI shapes them: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
# Pydantic's kinds of error; {…} is filled from the error's context.
REMEDIES = {
    "missing": "is missing; give it",
    "extra_forbidden": "is not a field of this request; remove it",
    "none_required": "is not supported by this server; leave it out",
    "model_attributes_type": "is not an object; send JSON with `Content-Type: "
    "application/json`",
    "model_type": "is not an object; send one",
    "dict_type": "is not an object; send one",
    "list_type": "is not a list; send one",
    "string_type": "is not text; send a string",
    "string_unicode": "is not valid Unicode; send whole characters",
    "int_type": "is not a whole number; send one",
    "int_from_float": "is not a whole number; send one",
    "float_type": "is not a number; send one",
    "bool_type": "is not true or false; send one of them",
    "finite_number": "is not finite; send a number",
    "too_short": "is too short; give at least {min_length}",
    "too_long": "is too long; give at most {max_length}",
    "string_too_short": "is too short; give at least {min_length} characters",
    "string_too_long": "is too long; give at most {max_length} characters",
    "greater_than": "is out of range; give more than {gt}",
    "greater_than_equal": "is out of range; give at least {ge}",
    "less_than_equal": "is out of range; give at most {le}",
    "literal_error": "is not known here; give {expected}",
}
# OpenAI has them, this server does not; the schema takes only their zero.
UNSUPPORTED = {
    "tools",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "echo",
    "best_of",
}


class ErrorBody(BaseModel):
    """What went wrong and what to do, in `message`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorBody


class ApiError(Exception):
    """Ends a request with `status` and OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = KINDS.get(status, "invalid_request_error")
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, self.headers)


def where(place: Sequence[str | int]) -> str:
    """("messages", 0, "content") as `messages[0].content`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def from_validation(errors: Sequence[Mapping[str, Any]], fields: set[str]) -> ApiError:
    """The most specific of pydantic's complaints, in our words."""
    worst = max(errors, key=lambda e: _depth(e, fields))
    kind, known = str(worst["type"]), _known(worst, fields)
    if kind == "json_invalid":
        return ApiError(400, "body: is not JSON; send an object", "invalid_json")
    if kind == "extra_forbidden":
        known.append(str(worst["loc"][-1])[:100])
    elif known and known[0] in UNSUPPORTED:
        kind = "none_required"
    name = where(known)
    remedy = REMEDIES.get(kind, "is not what the schema says; see /openapi.json")
    remedy = remedy.format(**worst.get("ctx", {}))
    return ApiError(400, f"{name or 'body'}: {remedy}", "invalid_value", name or None)


def _known(error: Mapping[str, Any], fields: set[str]) -> list[str | int]:
    """The place, without the names of types that pydantic tried in a union."""
    return [p for p in error["loc"] if isinstance(p, int) or p in fields]


def _depth(error: Mapping[str, Any], fields: set[str]) -> tuple[int, bool]:
    """Deeper is more specific; a wrong type is only one branch of a union."""
    return len(_known(error, fields)), not str(error["type"]).endswith("_type")


def install(app: FastAPI, fields: set[str]) -> None:
    """Answer every exception of `app` in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors(), fields).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        said = {
            400: "body: cannot be read; send JSON in UTF-8",
            404: "path: does not exist; GET / for the chat page, POST "
            "/v1/chat/completions for answers",
            405: f"method: {request.method[:20]} does not fit this path; "
            "see /openapi.json",
        }.get(error.status_code, str(error.detail))
        headers = error.headers
        return ApiError(error.status_code, said, None, None, headers).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return ApiError(
            500, "server: an unexpected error; the server's log names it"
        ).response()
