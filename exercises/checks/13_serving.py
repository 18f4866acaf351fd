"""Checks of chapter 13's exercises. They run the reader's file, nothing else."""

import random
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from r1lite.book.expect import close, expect, given, shape


def check_13_1(mine: ModuleType) -> None:
    given(mine.PAGE_BYTES, mine.USERS_ALONE, mine.USERS_SHARING)
    right = 64 * 576 * 2 * 61
    slips = {
        576 * 2 * 61: "PAGE_BYTES is one token's; a page has 64",
        64 * 576 * 2: "PAGE_BYTES is one layer's; a page is room in all 61",
        64 * 576 * 61: "PAGE_BYTES counts numbers; bfloat16 has two bytes",
        64 * 512 * 2 * 61: "PAGE_BYTES leaves out the 64 rotary numbers",
        64 * 576 * 4 * 61: "PAGE_BYTES: bfloat16 has two bytes, not four",
        2 * right: "PAGE_BYTES counts keys and values: in MLA the latent is both",
    }
    expect(mine.PAGE_BYTES not in slips, slips.get(mine.PAGE_BYTES, ""))
    expect(
        right == mine.PAGE_BYTES,
        f"PAGE_BYTES: {mine.PAGE_BYTES:,} is not it; 64 tokens, 576 numbers of two "
        "bytes, 61 layers",
    )
    pages = 40 * 10**9 // right
    expect(
        40 * 10**9 // (2500 * right // 64) != mine.USERS_ALONE,
        "USERS_ALONE counts tokens; pages are whole: 2,500 tokens take 40",
    )
    expect(
        pages // 39 != mine.USERS_ALONE,
        "USERS_ALONE: 39 pages hold 2,496 tokens; the last 4 need one more",
    )
    expect(
        pages // 40 == mine.USERS_ALONE,
        f"USERS_ALONE: {pages} pages fit, and a user takes 40",
    )
    expect(
        pages // 8 != mine.USERS_SHARING,
        "USERS_SHARING: the system prompt itself takes 32 pages, once",
    )
    expect(
        pages // 40 != mine.USERS_SHARING,
        "USERS_SHARING: shared pages are stored once, however many hold them",
    )
    expect(
        (pages - 32) // 8 == mine.USERS_SHARING,
        "USERS_SHARING: 32 pages once, then 452 tokens, 8 pages, for each user",
    )


def check_13_2(mine: ModuleType) -> None:
    def plan(*step: Any) -> tuple[list[int], list[int]]:
        running, waiting, budget, places = step
        kept = list(running), list(waiting)
        made = mine.plan_step(running, waiting, budget, places)
        expect(
            isinstance(made, tuple) and len(made) == 2,
            "return two lists: for the running, and for those who start",
        )
        expect((running, waiting) == kept, "the caller's lists have changed")
        expect(
            len(made[0]) == len(running),
            f"{len(running)} run and {len(made[0])} numbers came: 0 for who gets none",
        )
        return list(made[0]), list(made[1])

    expect(
        plan([1, 1, 1], [], 8, 4) == ([1, 1, 1], []),
        "three that decode get one token each",
    )
    given_, _ = plan([300, 1, 1], [], 32, 4)
    expect(
        given_[1:] == [1, 1],
        "a long prompt came first and the decoding samples got nothing: one token for "
        "each of them comes before all prompts",
    )
    expect(
        given_ == [30, 1, 1],
        "the prompt of 300 gets what the two decoding samples leave of 32: a piece of "
        "30",
    )
    expect(
        plan([20, 9], [], 24, 4) == ([20, 4], []),
        "the second prompt gets the rest of the budget, 4 of its 9 tokens",
    )
    expect(plan([1, 1, 1], [], 2, 4)[0] == [1, 1, 0], "the budget is 2, three decode")
    _, started = plan([1, 1], [5, 5, 5], 64, 4)
    expect(
        len(started) < 3,
        "two run, four places: only two of the three may start",
    )
    expect(started == [5, 5], "two places are free and the budget is large: 5 and 5")
    _, started = plan([1], [5, 9, 9], 10, 8)
    expect(
        0 not in started,
        "somebody was let in with no token: it would hold a place for nothing",
    )
    expect(
        started == [5, 4],
        "budget 10: one decodes, the first of the waiting takes 5, the second a piece "
        "of 4, the third waits",
    )
    expect(
        plan([1], [40, 1], 30, 8)[1] == [29],
        "a short one has overtaken: those who wait are let in in order",
    )
    dice = random.Random(0)
    for _ in range(200):
        running = [dice.choice((1, 1, dice.randint(2, 60))) for _ in range(5)]
        waiting = [dice.randint(1, 60) for _ in range(dice.randint(0, 5))]
        step = running, waiting, dice.randint(1, 99), dice.randint(5, 9)
        expect(
            plan(*step) == _slow_plan(*step),
            f"plan_step{step} should be {_slow_plan(*step)}",
        )


def _slow_plan(
    running: list[int], waiting: list[int], budget: int, places: int
) -> tuple[list[int], list[int]]:
    """Token by token."""
    given_ = [0] * len(running)
    order = sorted(range(len(running)), key=lambda i: running[i] > 1)
    for i in order:
        while given_[i] < running[i] and budget:
            given_[i], budget = given_[i] + 1, budget - 1
    started: list[int] = []
    for pending in waiting[: places - len(running)]:
        if budget:
            started.append(0)
        while budget and started[-1] < pending:
            started[-1], budget = started[-1] + 1, budget - 1
    return given_, started


def check_13_3(mine: ModuleType) -> None:
    def write(position: int, table: list[int], refs: list[int], free: list[int]) -> Any:
        pair = mine.page_to_write(position, table, refs, free, 4)
        expect(
            isinstance(pair, tuple) and len(pair) == 2,
            "return (page to write to, page to copy from first or None)",
        )
        return pair

    table, refs, free = [3], [0, 0, 0, 1], [2, 1, 0]
    expect(
        write(2, table, refs, free) == (3, None) and len(free) == 3,
        "position 2 lies in the first page, which is the sample's alone: write there, "
        "take nothing",
    )
    pair = write(4, table, refs, free)
    expect(
        pair[1] is None, "a page that is new holds nothing: there is no copy to make"
    )
    expect(
        pair == (0, None) and table == [3, 0],
        "position 4 begins the second page: take one from the end of `free` and append "
        "it to the table",
    )
    expect(free == [2, 1], "the page that was taken is still in `free`")
    expect(refs[0] == 1, "a page that was taken has one holder")
    one, two = [3, 2], [3, 2]
    refs, free = [0, 0, 2, 2], [1, 0]
    pair = write(6, one, refs, free)
    expect(
        pair[0] != 2,
        "page 2 has another holder, whose text would be written over: take a free page",
    )
    expect(pair == (0, 2), "return the new page, and the one whose tokens it needs")
    expect(one == [3, 0], "the new page stands in the old one's place in the table")
    expect(two == [3, 2], "the table of the other holder has changed")
    expect(
        refs[2] != 2,
        "the old page still counts this holder: it can never become free again",
    )
    expect(refs == [1, 0, 1, 2], f"the holders are {refs}, not [1, 0, 1, 2]")
    expect(
        free == [1],
        "the old page has a holder left: it is not free, and the new one is not either",
    )
    pair = write(6, two, refs, free)
    expect(
        pair == (2, None),
        "the last holder of a page writes into it; a copy would be a page too many",
    )
    expect(
        (refs, free) == ([1, 0, 1, 2], [1]), "the last holder writes: no book changes"
    )
    _many(write)


def _many(write: Any) -> None:
    """Three siblings of a prompt write at random; nobody sees another's tokens."""
    dice = random.Random(0)
    refs, free = [0] * 40, list(range(39, -1, -1))
    cells: dict[tuple[int, int], str] = {}
    tables: list[list[int]] = [[], [], []]
    for position in range(6):  # the prompt
        page, _ = write(position, tables[0], refs, free)
        cells[page, position % 4] = f"p{position}"
    for sibling in (1, 2):
        tables[sibling] = list(tables[0])
        for page in tables[0]:
            refs[page] += 1
    lengths = [6, 6, 6]
    while min(lengths) < 20:
        who = dice.randrange(3)
        page, source = write(lengths[who], tables[who], refs, free)
        if source is not None:
            for place in range(4):
                cells[page, place] = cells.get((source, place), "")
        cells[page, lengths[who] % 4] = f"{who}"
        lengths[who] += 1
    for who, table in enumerate(tables):
        read = [cells[table[i // 4], i % 4] for i in range(lengths[who])]
        wanted = [f"p{i}" for i in range(6)] + [str(who)] * (lengths[who] - 6)
        expect(read == wanted, f"sample {who} reads back what it did not write")
    held = sum(1 for page in range(40) if refs[page])
    expect(held + len(free) == 40, "a page is neither held nor free, or both")


def check_13_4(mine: ModuleType) -> None:
    def split(*chunks: str, thinking: bool = False) -> list[tuple[str, str]]:
        out: list[tuple[str, str]] = []
        for side, piece in mine.split_reasoning(list(chunks), thinking):
            expect(side in ("reasoning", "content"), f"there is no side {side!r}")
            expect(piece, "an empty piece was yielded")
            if out and out[-1][0] == side:
                piece = out.pop()[1] + piece
            out.append((side, piece))
        return out

    both = [("reasoning", "7+1"), ("content", "8")]
    expect(split("just 8") == [("content", "just 8")], "text without tags is content")
    expect(
        split("<think>7+1</think>8") == both,
        "one chunk with both tags: 7+1 is reasoning, 8 content, the tags neither",
    )
    expect(
        split("7+1</think>8", thinking=True) == both,
        "thinking=True: the prompt opened the block, so the text begins inside it",
    )
    expect(
        split("<thi", "nk>7+1</", "think", ">8") == both,
        "a tag that is split across chunks was not found",
    )
    expect(
        split(*"<think>7+1</think>8") == both,
        "letter by letter the tags are not found: how much of the end do you keep?",
    )
    expect(
        split("<think>so, 7+1") == [("reasoning", "so, 7+1")],
        "a block that never closes is reasoning to its end",
    )
    expect(
        split("<think>7 <", " 8</th") == [("reasoning", "7 < 8</th")],
        "what was held back and turned out to be no tag is lost, or on the wrong side",
    )
    odd = split("a</think>b<think>c<think>d</think>e")
    expect(
        odd
        == [("content", "a</think>b"), ("reasoning", "c<think>d"), ("content", "e")],
        "a tag that makes no sense where it stands is text",
    )
    expect(
        split("<<think>1<</think>2")
        == [("content", "<"), ("reasoning", "1<"), ("content", "2")],
        "`<<think>`: the first sign is text, the tag begins with the second",
    )
    _early(mine)
    _random(split)


def _early(mine: ModuleType) -> None:
    """After each chunk all that is certain must be out, and nothing else."""
    chunks = ["ab<", "th", "ink>cd", "e<", "f</think>g", "h"]
    certain = ["ab", "ab", "abcd", "abcde", "abcde<fg", "abcde<fgh"]
    out: list[str] = []

    def source() -> Iterator[str]:
        for i, chunk in enumerate(chunks):
            if i:
                found = "".join(out)
                expect(
                    len(found) >= len(certain[i - 1]),
                    f"after {''.join(chunks[:i])!r} only {found!r} is out: yield what "
                    "can be no tag before you ask for the next chunk",
                )
                expect(
                    found == certain[i - 1],
                    f"after {''.join(chunks[:i])!r} {found!r} is out, but its end may "
                    "still become a tag",
                )
            yield chunk

    for _, piece in mine.split_reasoning(source()):
        out.append(piece)


def _random(split: Any) -> None:
    dice = random.Random(0)
    parts = ["<think>", "</think>", "<", "th", "</", "a", "k>"]
    for _ in range(200):
        text = "".join(dice.choices(parts, k=dice.randint(1, 12)))
        cuts = sorted(dice.choices(range(len(text) + 1), k=dice.randint(0, 6)))
        edges = zip([0, *cuts], [*cuts, len(text)], strict=True)
        chunks = [text[a:b] for a, b in edges]
        thinking = dice.random() < 0.5
        wanted = split(text, thinking=thinking)
        expect(
            split(*chunks, thinking=thinking) == wanted,
            f"{chunks} gives something else than the same text in one chunk",
        )


def check_13_5(mine: ModuleType) -> None:
    f = mine.draw
    logits = torch.randn(6, 50)
    seeds, places = [11, 12, 13, 14, 15, 16], [0, 3, 3, 7, 9, 1]
    tokens = f(logits, seeds, places)
    shape(tokens, (6,), "the tokens")
    expect(torch.equal(tokens, f(logits, seeds, places)), "two calls, two answers")
    for i in range(6):
        alone = f(logits[i : i + 1], seeds[i : i + 1], places[i : i + 1])
        expect(
            torch.equal(alone, tokens[i : i + 1]),
            f"row {i} gets another token alone than in company: its chance may depend "
            "on its own seed and place only",
        )
    flat = torch.zeros(1, 4096)
    along = [f(flat, [5], [place]).item() for place in range(12)]
    expect(
        len(set(along)) > 6,
        "every place of a text gets the same chance: the place must enter the seed",
    )
    others = [f(flat, [seed], [5]).item() for seed in range(12)]
    expect(
        len(set(others)) > 6, "every seed gets the same chance: the seed must enter it"
    )
    pairs = [(a, b) for a in range(1, 9) for b in range(1, 9) if a < b]
    crossed = sum(
        f(flat, [a], [b]).item() == f(flat, [b], [a]).item() for a, b in pairs
    )
    expect(
        crossed < 5,
        "seed 1 at place 2 and seed 2 at place 1 share a chance: mix the two so that "
        "their order counts",
    )
    skewed = torch.tensor([0.6, 0.3, 0.1]).log().expand(1, 3)
    drawn = [f(skewed, [seed], [0]).item() for seed in range(600)]
    for token, share in enumerate((0.6, 0.3, 0.1)):
        close(
            drawn.count(token) / 600,
            share,
            f"token {token} has probability {share}, over 600 seeds it comes",
            atol=0.08,
        )


def check_13_6(mine: ModuleType) -> None:
    said = mine.RATIO_EQUAL, mine.RATIO_SPREAD, mine.RATIO_RARE
    given(*said, mine.WHY)
    lists = {
        "EQUAL": [64] * 640,
        "SPREAD": random.Random(0).choices(range(1, 128), k=640),
        "RARE": [8 if i % 8 else 512 for i in range(640)],
    }
    for (name, lengths), ratio in zip(lists.items(), said, strict=True):
        static, steps = _static(lengths), _continuous(lengths)
        expect(
            abs(ratio - steps / static) > 0.01 or name == "EQUAL",
            f"RATIO_{name} is upside down: static / continuous",
        )
        bound = static / (sum(lengths) / 8)
        expect(
            name != "RARE" or abs(ratio - bound) > 0.01,
            "RATIO_RARE assumes that no place is ever idle; at the end of the line "
            "some are: count the steps",
        )
        expect(
            abs(ratio - static / steps) < 0.011,
            f"RATIO_{name} is {ratio}; static: add the longest of each eight. "
            "Continuous: eight places, one token each a step, the next length when one "
            "is done",
        )
    expect(
        mine.WHY != "waiting",
        "nobody waits for a batch to fill: all 640 are there at the beginning",
    )
    expect(mine.WHY != "overlap", "both have eight places, and never more")
    expect(mine.WHY == "idle", 'WHY is one of "idle", "waiting", "overlap"')


def _static(lengths: list[int]) -> int:
    return sum(max(lengths[i : i + 8]) for i in range(0, len(lengths), 8))


def _continuous(lengths: list[int]) -> int:
    ends = [0] * 8  # the step after which each place is free
    for length in lengths:
        ends[ends.index(min(ends))] += length
    return max(ends)
