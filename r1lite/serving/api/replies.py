"""What the server answers, in OpenAI's shapes. Documents /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class TokenDetails(BaseModel):
    """Of the prompt: found in the prefix cache. Of the completion: reasoning."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class UsageReply(BaseModel):
    """Tokens of the whole request, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


class ChatMessage(BaseModel):
    """The reasoning stands under both names that clients know."""

    role: Literal["assistant"]
    content: str
    reasoning: str | None
    reasoning_content: str | None
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatReply(BaseModel):
    """A whole answer; with `stream`, events of `chat.completion.chunk` instead."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(BaseModel):
    """Continuations of all prompts: choice i * n + j is sample j of prompt i."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReply


class ModelCard(BaseModel):
    """The served model. `max_model_len`: tokens of prompt and answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "r1lite"
    max_model_len: int


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class State(BaseModel):
    """Of /health and /ready."""

    status: Literal["ok"]
