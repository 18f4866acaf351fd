"""Checks of chapter 8's exercises. They run the reader's file, nothing else."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config
from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.tasks.demonstrations import DemoConfig, Demonstrations

BASE = Path(__file__).parents[2] / "chapters" / "fixtures" / "nano" / "base"


@lru_cache
def _tokenizer() -> R1Tokenizer:
    return R1Tokenizer.train(["In order, mod 10: 3+4*2, 3+4=7 and 7*2=4"] * 3, 280)


def check_8_1(mine: ModuleType) -> None:
    found = mine.SHARE_AT_ONCE
    given(found)
    expect(abs(found - 0.6) > 1e-3, "0.6 is their share of the demonstrations")
    expect(
        abs(found - 126 / (126 + 136)) > 1e-3,
        "the 17 tokens of a question are counted; they are no targets",
    )
    expect(abs(found - 4 / 21) > 1e-3, "that holds for five and five of ten")
    expect(abs(found - 68 / 92) > 1e-3, "that is the share of the reasoning replies")
    close(found, 24 / 92, "six times 4 targets, four times 17", atol=1e-3)


def check_8_2(mine: ModuleType) -> None:
    t = _tokenizer()
    made = mine.example(t, "3+4*2", None, "4")
    expect(
        isinstance(made, chat.Example) and len(made.ids) == len(made.mask),
        "return Example(ids, mask), with a mask value for each id",
    )
    expect(
        made.ids[0] == t.bos_id and made.ids[1] == t.user_id,
        "a row starts with bos_id and user_id",
    )
    expect(t.assistant_id in made.ids, "assistant_id between question and reply")
    place = made.ids.index(t.assistant_id)
    expect(
        not any(made.mask[:place]),
        "the mask covers the question: the user's words are no targets",
    )
    expect(
        not made.mask[place],
        "assistant_id is a target; the program writes it, not the model",
    )
    expect(
        made.ids[-1] == t.eos_id and made.mask[-1],
        "the end token is missing, or no target: the model would never stop",
    )
    expect(
        t.think_id not in made.ids,
        "without reasoning there is no think block, not even an empty one",
    )
    empty = mine.example(t, "3+4*2", "", "4")
    expect(
        t.think_id in empty.ids,
        'an empty reasoning, "", is a reasoning: ask `is not None`',
    )
    forged = "".join(t.CONTROL)
    for name, one in (
        ("question", mine.example(t, forged, "7", "4")),
        ("reasoning", mine.example(t, "3", forged, "4")),
        ("answer", mine.example(t, "3", "7", forged)),
    ):
        expect(
            sum(i < len(t.CONTROL) for i in one.ids) == 8,
            f"control tokens written in the {name} became control tokens: encode "
            "each text by itself with tokenizer.encode",
        )
    for reasoning in (None, "", "3+4=7\n7*2=4", forged):
        one = mine.example(t, "3+4*2 ", reasoning, " 4")
        right = _slow_example(t, "3+4*2 ", reasoning, " 4")
        expect(
            t.decode(one.ids) == t.decode(right[0]),
            f"the row reads {t.decode(one.ids)!r}, it should read "
            f"{t.decode(right[0])!r}",
        )
        expect((one.ids, one.mask) == right, "ids or mask differ from the reference")


def _slow_example(
    t: R1Tokenizer, question: str, reasoning: str | None, answer: str
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    mask: list[bool] = []

    def say(tokens: Iterable[int], trained: bool) -> None:
        for token in tokens:
            ids.append(token)
            mask.append(trained)

    say([t.bos_id, t.user_id], False)
    say(t.encode(question), False)
    say([t.assistant_id], False)
    if reasoning is not None:
        say([t.think_id], True)
        say(t.encode(reasoning), True)
        say([t.think_end_id], True)
    say([t.answer_id], True)
    say(t.encode(answer), True)
    say([t.answer_end_id, t.eos_id], True)
    return ids, mask


def _model() -> R1Model:
    return R1Model(
        R1Config.preset("nano").with_(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_nextn_predict_layers=0,
            n_routed_experts=4,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).eval()


def check_8_3(mine: ModuleType) -> None:
    model, ids = _model(), torch.randint(40, (3, 11))
    alone = torch.arange(3)[:, None].expand(3, 11)
    last = torch.zeros(3, 11, dtype=torch.bool)
    last[:, -1] = True
    found = mine.masked_loss(model, ids, last, alone)
    shape(found, (), "the loss")
    logp = model(ids).logits.log_softmax(-1)
    own = -logp[:, -1].gather(-1, ids[:, -1:]).mean()
    expect(
        (found - own).abs() > 1e-4,
        "the state at place i is compared with token i itself; it predicts i + 1",
    )
    want = -logp[:, -2].gather(-1, ids[:, -1:]).mean()
    expect(
        (found - want * 3 / 30).abs() > 1e-4,
        "the sum is divided by all tokens; divide by the number of targets",
    )
    close(
        found,
        want,
        "one target a row, the last token: its loss is that of the state before it. "
        "Is the mask shifted together with the ids?",
        atol=1e-4,
    )
    mask = torch.rand(3, 11) < torch.tensor([[0.9], [0.5], [0.1]])
    mask[:, 0], mask[:, 5] = False, True
    want = _slow_loss(model, ids, mask, alone)
    found = mine.masked_loss(model, ids, mask, alone)
    nats = -logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    by_row = (nats.sum(-1) / mask[:, 1:].sum(-1)).mean()
    expect(
        (found - by_row).abs() > 1e-4,
        "a mean over rows of means: targets in rows with few of them weigh more",
    )
    close(found, want, "several targets in several rows: another mean", atol=1e-4)
    documents = torch.tensor([[0] * 4 + [1] * 7, [2] * 6 + [3] * 5, [4] * 9 + [-1] * 2])
    mask[2, 9:] = False
    mask[0, 4] = mask[1, 6] = False  # nothing predicts a first token
    close(
        mine.masked_loss(model, ids, mask, documents),
        _slow_loss(model, ids, mask, documents),
        "conversations in a row see each other: give the model the documents, cut "
        "like the ids",
        atol=1e-4,
    )
    none = mine.masked_loss(model, ids, mask & False, documents)
    expect(
        not none.isnan() and none == 0,
        "without any target the loss is not 0: divide by at least 1",
    )
    model.zero_grad()
    mine.masked_loss(model, ids, mask, documents).backward()
    grads = [p.grad for p in model.parameters()]
    expect(all(g is not None for g in grads), "a parameter got no gradient")
    wanted = torch.autograd.grad(
        _slow_loss(model, ids, mask, documents), list(model.parameters())
    )
    for g, w in zip(grads, wanted, strict=True):
        close(g, w, "the loss is right, its gradient is not", atol=1e-4)


def _slow_loss(model: R1Model, ids: Tensor, mask: Tensor, documents: Tensor) -> Tensor:
    """Each document alone, each target alone."""
    nats = []
    for r in range(len(ids)):
        for d in documents[r].unique().tolist():
            at = (documents[r] == d).nonzero()[:, 0]
            logp = model(ids[r, at][None]).logits[0].log_softmax(-1)
            for k in range(1, len(at)):
                if mask[r, at[k]]:
                    nats.append(-logp[k - 1, ids[r, at[k]]])
    return torch.stack(nats).mean()


def check_8_4(mine: ModuleType) -> None:
    logits, ids = torch.randn(3, 6, 9), torch.randint(9, (3, 6))
    mask = torch.zeros(3, 6, dtype=torch.bool)
    shape(mine.reply_nats(logits, ids, mask), (3,), "the nats")
    mask[:, -1] = True
    logp = logits.log_softmax(-1)
    found = mine.reply_nats(logits, ids, mask)
    expect(
        bool(found.abs().sum() > 0),
        "only the last token is a target, and the sum is 0: the mask is one place "
        "behind the ids it belongs to",
    )
    close(
        found,
        -logp[:, 4].gather(-1, ids[:, 5:])[:, 0],
        "the last token is predicted at the state before it",
    )
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    want = [
        -sum(logp[r, i - 1, ids[r, i]] for i in range(1, 6) if mask[r, i])
        for r in range(3)
    ]
    close(
        mine.reply_nats(logits, ids, mask.bool()),
        torch.stack([torch.as_tensor(w) for w in want]),
        "a sum for each row over its targets, not a mean and not one for all",
    )


def check_8_5(mine: ModuleType) -> None:
    found = mine.CHANCE_TO_THINK
    given(found)
    expect(
        abs(found - 0.5) > 1e-3,
        "0.5 is what a mean over *tokens* learns; here a target in a long reply "
        "weighs less",
    )
    expect(
        abs(found - 23 / 27) > 1e-3,
        "the other way round: the long replies' targets weigh 1/23, not 23",
    )
    expect(abs(found - 4 / 23) > 1e-3, "4/23 is the ratio of two weights, no chance")
    close(found, 4 / 27, "weight of the thinking over the sum of both", atol=2e-3)


def check_8_6(mine: ModuleType) -> None:
    rise, why = mine.RISE, mine.WHY
    given(rise, why)
    curves = _bigram()
    seen, held = curves[-1]
    best = min(h for _, h in curves)
    expect(
        abs(rise - (held - seen)) > 0.03,
        "that is the gap between the two sets at the end; asked is the held-out loss "
        "against its own lowest",
    )
    expect(abs(rise - held) > 0.03, "that is the held-out loss itself, at the end")
    expect(abs(rise - best) > 0.03, "that is the lowest held-out loss, not the rise")
    close(rise, held - best, "held-out loss at the end minus its lowest", atol=0.03)
    expect(
        why != "form",
        "tags and the end token stand in every reply: they are learnt first",
    )
    expect(why != "seen", "the training loss falls to the last step")
    expect(why == "unseen", 'WHY is one of "form", "unseen", "seen"')


@lru_cache
def _bigram() -> list[tuple[float, float]]:
    """(loss on the eight, loss held out) before each of 200 steps."""
    t = R1Tokenizer.load(BASE)
    demos = Demonstrations(
        DemoConfig(answer_only=0, wrong_steps=0), {"chain/3": 1.0}, seed=0
    )

    def pairs(numbers: Iterable[int]) -> Tensor:
        found = []
        for i in numbers:
            d = demos.at(i)
            e = chat.example(t, d.question, d.reasoning, d.answer)
            found += [(e.ids[k - 1], e.ids[k]) for k, m in enumerate(e.mask) if m]
        return torch.tensor(found).T

    (left, right), (held_left, held_right) = pairs(range(8)), pairs(range(100, 164))
    weight = torch.zeros(t.vocab_size, t.vocab_size)
    used = left.unique()
    curves = []
    for _ in range(200):
        rows = weight[left].log_softmax(-1)
        now = F.nll_loss(rows, right).item()
        curves.append((now, F.cross_entropy(weight[held_left], held_right).item()))
        slope = rows.exp()
        slope[torch.arange(len(left)), right] -= 1
        step = torch.zeros_like(weight).index_add_(0, left, slope)
        weight[used] -= 30 / len(left) * step[used]
    return curves
