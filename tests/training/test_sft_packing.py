"""SFT: packing changes neither loss nor gradient; the mask is the reply."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.data import chat
from r1lite.data.packing import PADDING, MaskedRows, pack_examples
from r1lite.data.tokenizer import CONTROL, R1Tokenizer
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.training.sft import masked_loss

TOKENIZER = R1Tokenizer.train(["In order, mod 10: 3+4*2, 3+4=7, 7*2=4"] * 3, 280)
PIECES = st.sampled_from([*CONTROL, "3", "+", " ", "\n", "<", "é", "🙂"])
TEXT = st.lists(PIECES, max_size=8).map("".join)
REPLIES = st.tuples(TEXT, st.none() | TEXT, TEXT)


def conversations(tokenizer: R1Tokenizer) -> list[chat.Example]:
    """Replies of very different lengths, so that a mean of means would differ."""
    problem_at = stream({"chain/3": 1.0, "chain/6": 1.0}, 2).problem_at
    found = []
    for i in range(9):
        p = problem_at(i)
        thinking = p.reasoning if i % 3 == 0 else None
        found.append(chat.example(tokenizer, p.question, thinking, p.answer))
    return found


def gradient(model: R1Model, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def loss_of(model: R1Model, rows: MaskedRows) -> Tensor:
    return masked_loss(model, rows.ids, rows.mask, rows.document_ids)


def alone(model: R1Model, made: list[chat.Example]) -> Tensor:
    """Every conversation by itself, every target by itself."""
    nats = []
    for e in made:
        logp = model(torch.tensor([e.ids])).logits[0].log_softmax(-1)
        nats += [-logp[i - 1, e.ids[i]] for i in range(1, len(e.ids)) if e.mask[i]]
    return torch.stack(nats).mean()


def test_packed_and_alone_have_one_loss_and_gradient(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    model.eval()
    made = conversations(tokenizer)
    want = alone(model, made)
    slope = gradient(model, want)
    for seq_len, seed in ((127, 0), (90, 1)):
        rows = pack_examples(made, seq_len, seed)
        assert rows.ids.size(0) < len(made)
        got = loss_of(model, rows)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient(model, got), slope, atol=1e-5, rtol=1e-4)


def test_without_documents_conversations_leak(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    model.eval()
    rows = pack_examples(conversations(tokenizer), 127, 0)
    one = torch.zeros_like(rows.document_ids)
    leaking = masked_loss(model, rows.ids, rows.mask, one)
    assert (leaking - loss_of(model, rows)).abs() > 1e-3


def test_rows_without_a_target_cost_nothing(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    rows = pack_examples(conversations(tokenizer), 127, 0)
    model.eval()
    none = torch.zeros_like(rows.mask)
    assert masked_loss(model, rows.ids, none, rows.document_ids).item() == 0.0
    once = loss_of(model, rows)
    twice = masked_loss(
        model,
        torch.cat([rows.ids, rows.ids]),
        torch.cat([rows.mask, none]),
        torch.cat([rows.document_ids, rows.document_ids]),
    )
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(REPLIES, min_size=1, max_size=6), st.integers(0, 99))
def test_targets_are_the_replies_and_nothing_else(
    said: list[tuple[str, str | None, str]], seed: int
) -> None:
    made = [chat.example(TOKENIZER, *one) for one in said]
    longest = max(len(e.ids) for e in made)
    rows = pack_examples(made, 2 * longest, seed)
    assert not rows.mask[rows.document_ids == PADDING].any()
    for i, (question, reasoning, answer) in enumerate(said):
        here = rows.document_ids == i
        ids, mask = rows.ids[here].tolist(), rows.mask[here].tolist()
        assert ids == made[i].ids
        start = mask.index(True)
        assert all(mask[start:]) and ids[start - 1] == TOKENIZER.assistant_id
        assert TOKENIZER.decode(ids[2 : start - 1]) == question
        assert ids[-1] == TOKENIZER.eos_id
        got = chat.parse(TOKENIZER, ids[start:])
        assert (got.reasoning, got.answer, got.well_formed) == (reasoning, answer, True)
