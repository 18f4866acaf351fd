"""Conversations as token ids: prompts, training examples, parsed answers.

The format is R1's (arXiv 2501.12948, table 1): reasoning between `<think>` and
`</think>`, then the answer between `<answer>` and `</answer>`. Everything works
on ids. A tag that a user types is text and stays text; only the model and this
module write control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from r1lite.data.tokenizer import CHAT_TEMPLATE, R1Tokenizer
from r1lite.errors import R1Error

__all__ = [
    "CHAT_TEMPLATE",
    "Example",
    "Response",
    "example",
    "parse",
    "prompt",
    "render",
]


@dataclass(frozen=True)
class Example:
    """One conversation to train on. `mask[i]`: token i is a target."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Response:
    """What the model wrote after a prompt, taken apart.

    well_formed: at most one think block, exactly one answer block, the end
        token, in that order and nothing else.
    answer: the last closed answer block, also of a malformed response.
    reasoning: the first think block; up to the next control token if unclosed.
    has_think: that block is closed and not blank.
    """

    reasoning: str | None
    answer: str | None
    well_formed: bool
    has_think: bool


def prompt(tokenizer: R1Tokenizer, question: str, think: bool = False) -> list[int]:
    """Ids that ask `question`; `think` starts the answer with `<think>`."""
    messages = [{"role": "user", "content": question}]
    return render(tokenizer, messages, True, think)


def example(
    tokenizer: R1Tokenizer, question: str, reasoning: str | None, answer: str
) -> Example:
    """A question with its reply; only the reply is trained on."""
    asked = prompt(tokenizer, question)
    reply = _reply(tokenizer, reasoning, answer)
    return Example(asked + reply, [False] * len(asked) + [True] * len(reply))


def render(
    tokenizer: R1Tokenizer,
    messages: Sequence[Mapping[str, str | None]],
    add_generation_prompt: bool = True,
    think: bool = False,
) -> list[int]:
    """Ids of a conversation of several turns.

    A message has `role` (system, only first; user; assistant) and `content`;
    an assistant's may have `reasoning_content`. That of earlier turns is
    dropped as R1 does, so it fills no context; that of a closing reply is kept.

    Raises:
        R1Error: no messages, an unknown or misplaced role, or no content.
    """
    if not messages:
        raise R1Error("messages: the conversation is empty; give at least one message")
    ids = [tokenizer.bos_id]
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise R1Error(f"messages.{i}.content: is not text; give a string")
        if role == "system" and i == 0:
            ids += tokenizer.encode(content)
        elif role == "user":
            ids += [tokenizer.user_id, *tokenizer.encode(content)]
        elif role == "assistant":
            last = i == len(messages) - 1
            reasoning = message.get("reasoning_content") if last else None
            ids += [tokenizer.assistant_id, *_reply(tokenizer, reasoning, content)]
        else:
            raise R1Error(
                f"messages.{i}.role: {role!r} does not fit here; "
                "use user or assistant, or system for the first message"
            )
    if add_generation_prompt:
        ids += [tokenizer.assistant_id, *([tokenizer.think_id] if think else [])]
    return ids


def parse(
    tokenizer: R1Tokenizer, ids: Sequence[int], forced_think: bool = False
) -> Response:
    """Take a response (new tokens, the end token included) apart.

    `forced_think`: the prompt ended with `<think>`, so the response began
    inside the block.
    """
    t = tokenizer
    ids = [t.think_id, *ids] if forced_think else list(ids)
    places = [i for i, x in enumerate(ids) if x < len(t.CONTROL)]
    reasoning, answer, has_think = None, None, False
    for start, end in pairwise([*places, len(ids)]):
        inside, closing = ids[start + 1 : end], ids[end : end + 1]
        if ids[start] == t.think_id and reasoning is None:
            reasoning = t.decode(inside)
            has_think = closing == [t.think_end_id] and bool(reasoning.strip())
        if ids[start] == t.answer_id and closing == [t.answer_end_id]:
            answer = t.decode(inside)
    return Response(reasoning, answer, _well_formed(t, ids, places), has_think)


def _well_formed(t: R1Tokenizer, ids: list[int], places: list[int]) -> bool:
    """Whether the control tokens at `places` follow R1's format exactly."""
    short = [t.answer_id, t.answer_end_id, t.eos_id]
    if [ids[i] for i in places] not in (short, [t.think_id, t.think_end_id, *short]):
        return False
    # Text may stand only inside a block, so after an opening tag.
    bare = [i for i in places if ids[i] not in (t.think_id, t.answer_id)]
    return (
        places[0] == 0
        and bare[-1] == len(ids) - 1
        and all(i + 1 in places for i in bare[:-1])
    )


def _reply(tokenizer: R1Tokenizer, reasoning: str | None, answer: str) -> list[int]:
    """[<think>reasoning</think>]<answer>answer</answer><eos> as ids."""
    t = tokenizer
    ids = [t.answer_id, *t.encode(answer), t.answer_end_id, t.eos_id]
    if reasoning is None:
        return ids
    return [t.think_id, *t.encode(reasoning), t.think_end_id, *ids]
