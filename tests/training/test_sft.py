"""SFT: what is trained on, and that packing changes nothing."""

from __future__ import annotations

import torch

from r1lite.data import chat
from r1lite.data.packing import pack_examples
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.training.loop import Run
from r1lite.training.optim import OptimConfig
from r1lite.training.sft import (
    SFTConfig,
    masked_loss,
    sft,
    take_tokens,
    token_logprobs,
)


def examples(tokenizer: R1Tokenizer, count: int = 6) -> list[chat.Example]:
    problem_at = stream({"chain/3": 1.0}, 1).problem_at
    found = []
    for i in range(count):
        p = problem_at(i)
        thinking = p.reasoning if i % 2 else None
        found.append(chat.example(tokenizer, p.question, thinking, p.answer))
    return found


def test_packed_loss_is_the_mean_over_replies_alone(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    model.eval()
    made = examples(tokenizer)
    packed = pack_examples(made, 96, 0)
    got = masked_loss(model, packed.ids, packed.mask, packed.document_ids)
    nats, count = 0.0, 0
    for e in made:  # one by one, without packing, padding or a mask
        logp = model(torch.tensor([e.ids])).logits[0].log_softmax(-1)
        for at, trained in enumerate(e.mask):
            if trained:
                nats -= logp[at - 1, e.ids[at]].item()
                count += 1
    assert abs(got.item() - nats / count) < 1e-5


def test_the_prompt_is_not_trained_on(model: R1Model, tokenizer: R1Tokenizer) -> None:
    e = examples(tokenizer, 1)[0]
    row = torch.tensor([e.ids])
    only_end = torch.zeros_like(row, dtype=torch.bool)
    only_end[0, -1] = True
    model.eval()
    loss = masked_loss(model, row, only_end, torch.zeros_like(row))
    want = -model(row).logits[0, -2].log_softmax(-1)[tokenizer.eos_id]
    torch.testing.assert_close(loss, want, atol=1e-5, rtol=1e-5)
    start = e.mask.index(True)
    assert e.ids[start - 1] == tokenizer.assistant_id
    assert all(e.mask[start:])


def test_take_tokens_fills_the_budget(tokenizer: R1Tokenizer) -> None:
    made = examples(tokenizer, 40)
    taken = take_tokens(lambda i: made[i % 40], 3, 200)
    lengths = [len(e.ids) for e in taken]
    assert sum(lengths) >= 200 > sum(lengths[:-1])
    assert taken[0].ids == made[3].ids


def test_token_logprobs_are_the_models(model: R1Model, tokenizer: R1Tokenizer) -> None:
    model.eval()
    made = examples(tokenizer, 3)
    width = max(len(e.ids) for e in made)
    ids = torch.full((3, width), tokenizer.pad_id)
    for row, e in enumerate(made):
        ids[row, : len(e.ids)] = torch.tensor(e.ids)
    starts = torch.tensor([e.mask.index(True) for e in made])
    lengths = torch.tensor([len(e.ids) for e in made])
    got, mask = token_logprobs(model, ids, starts, lengths, temperature=0.5)
    for row, e in enumerate(made):
        logp = (model(torch.tensor([e.ids])).logits[0] / 0.5).log_softmax(-1)
        for at in range(1, width):
            inside = at < len(e.ids) and e.mask[at]
            assert bool(mask[row, at - 1]) == inside
            want = logp[at - 1, e.ids[at]].item() if inside else 0.0
            assert abs(got[row, at - 1].item() - want) < 1e-4


def test_it_learns_six_examples(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    made = examples(tokenizer)
    config = SFTConfig(
        steps=25, tokens=250, seq_len=96, optim=OptimConfig(lr=0.01, warmup_steps=2)
    )
    result = sft(run, "sft", model, config, lambda i: made[i % 6])
    rows = run.log.rewind("sft", 25)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.0
    assert result.tokens == rows[-1]["tokens"]
    assert [len(r["load"]) for r in rows if "load" in r] == [1, 1, 1]  # one MoE layer
