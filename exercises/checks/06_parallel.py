"""Checks of chapter 6's exercises. They start no process: ranks are lists."""

from types import ModuleType

import torch
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config
from r1lite.planner.layout import Layout
from r1lite.planner.memory import Precision, rank_memory


def check_6_1(mine: ModuleType) -> None:
    found = mine.BYTES_SENT
    given(found)
    right = 4096 * 8 * 63 // 64 * 7168
    slips = {
        4096 * 8 * 7168: "one of 64 ranks is the sender: what its own experts need is "
        "not sent",
        4096 * 8 // 64 * 7168: "that is what stays at home; the other 63 of 64 leave",
        4096 * 63 // 64 * 7168: "that is one row a token; each token goes to 8 experts",
        2 * right: "count the way out only, and one byte for a number",
        3 * right: "that is the way out and, in bf16, back; only the way out is asked",
        right // 7168: "those are rows; a row has 7,168 bytes",
        right // 4096: "that is one token; the rank holds 4,096",
    }
    expect(found not in slips, slips.get(found, ""))
    expect(
        found == right,
        f"{found:,} is not it; tokens x picks are rows, a part of them leaves, each "
        "has 7,168 bytes",
    )


def check_6_2(mine: ModuleType) -> None:
    expert_major = mine.expert_major
    by_hand = torch.tensor([[1, 1], [2, 0]])
    found = expert_major(by_hand)
    shape(found, (4,), "the order")
    expect(found.dtype == torch.int64, "the order holds places: int64")
    expect(
        found.tolist() != [0, 1, 2, 3],
        "the rows stay as they came, by sender: the expert has to be the first key",
    )
    expect(
        found.tolist() != [0, 3, 1, 2],
        "that is the way back: rows[order] must be sorted, not rows sorted by it",
    )
    close(found, [0, 2, 3, 1], "[[1, 1], [2, 0]]: rows for experts 0, 1, 0, 0")
    wide = torch.tensor([[2, 0, 1], [1, 3, 0]])
    close(
        expert_major(wide),
        [0, 1, 3, 4, 5, 6, 2],
        "with 2 senders and 3 experts the names of the rows are wrong: each sender's "
        "rows run through all experts",
    )
    shape(expert_major(torch.zeros(3, 2, dtype=torch.int64)), (0,), "nothing arrived")
    many = torch.randint(0, 40, (5, 7))
    many[2], many[:, 4] = 0, 0
    found = expert_major(many)
    labels = [(e, s) for s in range(5) for e in range(7) for _ in range(many[s, e])]
    in_order = [labels[i] for i in found.tolist()]
    expect(in_order == sorted(in_order), "the rows are not sorted by (expert, sender)")
    close(
        found,
        sorted(range(len(labels)), key=lambda i: labels[i]),
        "rows of one expert and sender changed their order: sort with stable=True",
    )


def check_6_3(mine: ModuleType) -> None:
    send_home = mine.send_home
    send = [[1, 2], [0, 2]]  # chapter 06: 11 | 10, 12 and | 20, 21
    slopes = [torch.tensor([[11.0]]), torch.tensor([[10.0], [12.0], [20.0], [21.0]])]
    try:
        found = send_home(slopes, send)
    except RuntimeError as error:
        expect(
            "split" not in str(error),
            "the sizes do not fit: what rank r received is a column, send[q][r]",
        )
        raise
    expect(len(found) == 2, "return one gradient for every rank")
    shape(found[0], (3, 1), "rank 0 sent three rows: its gradient")
    shape(found[1], (2, 1), "rank 1 sent two rows: its gradient")
    close(found[0][:1], [[11.0]], "rank 0's first row went to rank 0 itself")
    close(found[0], [[11.0], [10.0], [12.0]], "rank 0's rows lie by destination")
    close(found[1], [[20.0], [21.0]], "rank 1's rows come from what rank 1 received")
    send = [[2, 2, 2], [2, 2, 2], [2, 2, 2]]
    rows = [torch.arange(6.0).view(6, 1) + 10 * r for r in range(3)]
    found = send_home(_exchange(rows, send), send)
    for r in range(3):
        expect(
            set(found[r].flatten().tolist()) == set(rows[r].flatten().tolist()),
            f"rank {r} got the gradient of rows that another rank sent: the piece of "
            "sender q goes to q",
        )
        close(found[r], rows[r], "every rank's own rows, but in another order")
    send = [[0, 3, 1], [2, 0, 0], [0, 0, 0]]  # a rank without rows, zeros everywhere
    rows = [torch.randn(sum(s), 4) for s in send]
    for back, row in zip(send_home(_exchange(rows, send), send), rows, strict=True):
        shape(back, row.shape, "zero rows are usual: the gradient")
        close(back, row, "with zero rows here and there it is not the way back")


def _exchange(rows: list[Tensor], send: list[list[int]]) -> list[Tensor]:
    mail = [r.split(s) for r, s in zip(rows, send, strict=True)]
    return [torch.cat([box[to] for box in mail]) for to in range(len(mail))]


def check_6_4(mine: ModuleType) -> None:
    add_up = mine.add_up

    def grads(ranks: int) -> list[dict[str, Tensor]]:
        return [
            {"head": torch.randn(2, 3), "experts": torch.randn(4)} for _ in range(ranks)
        ]

    def total(ranks: list[dict[str, Tensor]], name: str, *chosen: int) -> Tensor:
        return sum((ranks[r][name] for r in chosen[1:]), ranks[chosen[0]][name])

    whole = grads(4)
    before = [{k: v.clone() for k, v in g.items()} for g in whole]
    found = add_up(whole, {"experts"}, 2)
    expect(len(found) == 4 and found[0].keys() == whole[0].keys(), "four dictionaries")
    every = total(whole, "head", 0, 1, 2, 3)
    for r in range(4):
        close(
            found[r]["head"] * 4,
            every * 4,
            "a parameter that all hold alike is summed over every rank, and divided "
            "by nothing: losses are shares already",
        )
    expect(
        not torch.allclose(found[0]["experts"], total(whole, "experts", 0, 1)),
        "rank 1 holds other experts than rank 0: its copies are where rank % ep is "
        "the same",
    )
    expect(
        not torch.allclose(found[0]["experts"], total(whole, "experts", 0, 1, 2, 3)),
        "an expert is summed over its copies only, not over everyone",
    )
    expect(
        not torch.allclose(found[0]["experts"], whole[0]["experts"]),
        "the gradient of the expert's copy on rank 2 is missing",
    )
    for r in range(4):
        right = total(whole, "experts", r, (r + 2) % 4)
        close(found[r]["experts"], right, f"the expert's gradient on rank {r} is wrong")
    six = grads(6)  # dp 2, ep 3
    found = add_up(six, {"experts"}, 3)
    for r in range(6):
        right = total(six, "experts", r, (r + 3) % 6)
        close(found[r]["experts"], right, "six ranks with ep 3: copies are 3 apart")
    for old, new in zip(before, whole, strict=True):
        for name, value in old.items():
            close(new[name], value, "the gradients that were given have changed")


def check_6_5(mine: ModuleType) -> None:
    share_slots = mine.share_slots
    load = torch.tensor([90, 30, 20])
    found = share_slots(load, 3)
    shape(found, (3,), "the copies")
    close(found, [1, 1, 1], "three slots for three experts: one each")
    close(
        share_slots(load, 4), [2, 1, 1], "the first spare slot goes to the load of 90"
    )
    expect(
        share_slots(load, 12).tolist() != [10, 1, 1],
        "the busiest *copy* counts: 90 tokens on four copies are fewer than 30 on one",
    )
    expect(
        share_slots(load, 7).tolist() != [5, 1, 1],
        "90 on four copies are 22 each, 30 on one are 30: look at the copies there "
        "are, not at what they would be afterwards",
    )
    close(share_slots(load, 5), [3, 1, 1], "90 on two copies are still 45 each")
    close(share_slots(load, 6), [4, 1, 1], "30 against 30: of equals the first one")
    close(share_slots(load, 7), [4, 2, 1], "after four copies of the first, the second")
    idle = torch.tensor([0, 0, 8, 0])
    close(share_slots(idle, 6), [1, 1, 3, 1], "an expert without tokens keeps one slot")
    close(share_slots(torch.zeros(3), 5), [3, 1, 1], "no load at all: the first one")
    load = torch.randint(0, 1000, (16,))
    found = share_slots(load, 24)
    close(found.sum(), 24, "all slots have to be filled")
    busiest = float((load / found).max())
    for expert in range(16):  # no other single move would do better
        fewer = found.clone()
        fewer[expert] -= 1
        if fewer[expert] and float((load / fewer).max()) < busiest:
            expect(False, "another expert's slot would relieve the busiest copy")


def check_6_6(mine: ModuleType) -> None:
    given(mine.SMALLEST_EP, mine.LARGEST_PART)
    config, room = R1Config.preset("v3"), 80e9
    plans = {}
    for ep in (1, 2, 4, 8, 16, 32, 64, 128):
        layout = Layout(gpus=2048, pp=16, ep=ep, rows=15360, seq=4096)
        plans[ep] = rank_memory(
            config, layout, 8, Precision(activation=1), schedule="dualpipe"
        )
    right = min(ep for ep, plan in plans.items() if plan.total < room)
    found = mine.SMALLEST_EP
    expect(found in plans, "SMALLEST_EP is a power of two, up to 128")
    if found < right:
        expect(False, f"ep {found} needs {plans[found].total / 1e9:.0f} GB, over 80")
    expect(found == right, f"ep {found // 2} fits, too: a smaller one is asked")
    parts = ("weights", "gradients", "optimizer", "activations")
    most = max(parts, key=lambda part: float(getattr(plans[right], part)))
    expect(mine.LARGEST_PART in parts, f"LARGEST_PART is one of {', '.join(parts)}")
    expect(
        most == mine.LARGEST_PART,
        f"{mine.LARGEST_PART} are not the largest part at ep {right}: print all four",
    )
