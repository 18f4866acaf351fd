"""What clients send: OpenAI's request bodies, as far as this server obeys them.

A field that would change the answer and is not built here is refused, never
ignored: a client must not believe that it got tools or JSON. Fields that only
label a request (`user`, `metadata`) are taken and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LONGEST_STOP = 256  # characters; held back from the stream while they match
MOST_STOPS = 4  # as OpenAI
MOST_CHOICES = 16
MOST_LOGPROBS = 20  # as OpenAI
INT64 = 2**63 - 1


def _whole(value: Any) -> Any:
    """5.0 is an integer to JSON Schema, so it is one here."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


Whole = BeforeValidator(_whole)  # behind Field, or its bounds leave the schema
Positive = Annotated[int, Field(ge=1, le=INT64), Whole]
Share = Annotated[float, Field(ge=0, le=1)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]


class Strict(BaseModel):
    """No unknown fields, no "5" for 5, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """`include_usage`: a last chunk counts the tokens.

    `continuous_usage_stats`: so does every chunk (vLLM's extension).
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TemplateOptions(Strict):
    """Either starts the answer with `<think>`; vLLM's clients say `thinking`."""

    thinking: bool | None = None
    think: bool | None = None


class ResponseFormat(Strict):
    """Plain text only."""

    type: Literal["text"]


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. What the client got as an answer can be sent back as it is."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    reasoning: str | None = None
    reasoning_content: str | None = None
    name: str | None = Field(None, description="Taken and not used.")
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def text(self) -> str:
        """The content in one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class Common(Strict):
    """What chat and plain completions share. null means the default."""

    model: str
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT64), Whole] | None = Field(
        None, description="Extension. 0 and -1: off."
    )
    min_p: Share | None = Field(None, description="Extension.")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), Whole] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool | None = Field(None, description="Extension. Go to the limit.")
    seed: Annotated[int, Field(ge=-INT64, le=INT64), Whole] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000), Whole] | None = Field(
        None, description="Extension. Lower is served earlier."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Known and not built: only the value that changes nothing is taken.
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    # Labels: taken and not used.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings, none to four."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), Whole] | None = None
    chat_template_kwargs: TemplateOptions | None = Field(
        None, description="Extension: {'thinking': true} makes the model reason."
    )
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(Common):
    """POST /v1/completions: text or token ids, continued as they stand."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_CHOICES),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), Whole] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
