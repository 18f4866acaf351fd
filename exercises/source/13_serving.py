"""Exercises of chapter 13: pages, a step's budget, streams, and dice."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

# %% 13.1 | How many users fit? | predict | level 1 | 10 min
# DeepSeek-V3 keeps 512 + 64 numbers for each token and layer, in bfloat16, and has 61
# layers (leave MTP out). A page holds 64 tokens in every layer. 40 GB, that is
# 40 * 10^9 bytes, are left for pages. How many bytes is a page, over all layers? Every
# user has a conversation of 2,500 tokens: how many users fit at once, each with pages
# of their own? And how many if the first 2,048 of the 2,500 tokens are one system
# prompt, the same for all, whose pages are shared?
# HINT: bytes for a token: 576 numbers, two bytes each, 61 layers. A page has 64 tokens.
# HINT: pages are whole: 2,500 tokens take 40 of them, the last one nearly empty.
#   And half a page at the end of 40 GB is no page.
# HINT: the system prompt fills 32 pages exactly, once for everybody. The other 452
#   tokens take 8 pages of each user's own.
# SOLUTION
PAGE_BYTES = 64 * 576 * 2 * 61
USERS_ALONE = 40 * 10**9 // PAGE_BYTES // 40
USERS_SHARING = (40 * 10**9 // PAGE_BYTES - 32) // 8
# STUB
# PAGE_BYTES = None  # bytes
# USERS_ALONE = None  # whole users
# USERS_SHARING = None  # whole users
# END


# %% 13.2 | Who computes what | fill | level 2 | 20 min
# One step of a scheduler. `running` and `waiting` hold the pending tokens of every
# sample, in the order of their rank: 1 for a sample that decodes, more for one whose
# prompt is not read to its end. The step has `budget` tokens, and at most `places`
# samples run at once. Decoding samples come first, one token each. Then the prompts of
# the running, in order, each as much as it has pending and the budget allows. Then
# those who wait are let in, in order, while there is a place and budget left; the
# last one in may get only a piece. Return the tokens of each running sample (0 for
# none), and those of the waiting that were let in (a shorter list, maybe empty).
# HINT: two passes over `running`: one for the samples with 1 pending, one for the
#   others. What a sample gets is min(pending, budget), and the budget shrinks by it.
# HINT: who is let in takes a place: stop when len(running) and those let in are
#   `places`, or when nothing is left of the budget. Nobody is let in with 0 tokens.
# HINT: a one-token prompt that waits is not decoding yet: it keeps its turn.
def plan_step(
    running: list[int], waiting: list[int], budget: int, places: int
) -> tuple[list[int], list[int]]:
    """Tokens for each of the running, and for those of the waiting that start."""
    # SOLUTION
    given = [0] * len(running)
    for decoding in (True, False):
        for i, pending in enumerate(running):
            if (pending == 1) == decoding:
                given[i] = min(pending, budget)
                budget -= given[i]
    started: list[int] = []
    for pending in waiting:
        if not budget or len(running) + len(started) == places:
            break
        started.append(min(pending, budget))
        budget -= started[-1]
    return given, started
    # STUB
    # raise NotImplementedError("13.2: decoding, then prompts, then the door")
    # END


# %% 13.3 | Copy on write | fill | level 2 | 20 min
# The next token of a sample stands at `position`; `table` lists its pages in order,
# `size` tokens each. refs[page] counts the holders of every page, `free` lists the
# pages without one. Find the page that the token is written to, and keep the books:
# - the position begins a page that the table does not have yet: take one from the end
#   of `free`, for one holder, and append it to the table;
# - the page is this sample's alone: nothing to do;
# - the page has other holders: take a free page for this sample in its place, and be
#   one holder less of the old one.
# Return (page to write to, page to copy from first or None). There is always a free
# page. Change table, refs and free in place.
# HINT: position // size is the place of the page in the table; it is len(table) for a
#   page that the table lacks.
# HINT: after a copy the old page has lost this holder and nobody else; it stays in the
#   tables of the others.
# HINT: new = free.pop(); refs[new] = 1; and for a copy refs[old] -= 1 and
#   table[place] = new.
def page_to_write(
    position: int, table: list[int], refs: list[int], free: list[int], size: int
) -> tuple[int, int | None]:
    """(the page to write to, the page to copy there first or None)."""
    # SOLUTION
    place = position // size
    if place < len(table) and refs[table[place]] == 1:
        return table[place], None
    new = free.pop()
    refs[new] = 1
    if place == len(table):
        table.append(new)
        return new, None
    old = table[place]
    refs[old] -= 1
    table[place] = new
    return new, old
    # STUB
    # raise NotImplementedError("13.3: new, own or shared?")
    # END


# %% 13.4 | Reasoning in pieces | fill | level 3 | 30 min
# You sit in front of somebody else's server and see only text, in chunks that end
# anywhere: "<th" may be followed by "ink>". Take reasoning and content apart while they
# stream. Text between <think> and </think> is reasoning, everything else content; the
# tags are neither. `thinking`: the prompt ended with <think>, so the answer starts
# inside the block. A block that never closes is reasoning to its end. A tag that makes
# no sense there (<think> inside a block, </think> outside one) is text like any other.
# Yield ("reasoning", piece) or ("content", piece) as early as you can: hold back only
# an end that may be the beginning of the tag you look for. No piece is empty.
# HINT: at any time you look for one tag: </think> inside the block, <think> outside.
#   Keep the text that is not yielded yet in one string.
# HINT: while the tag is in it, yield what is before the tag and change sides. Then
#   find the longest end of the rest that is a beginning of the new tag, keep it, and
#   yield what is before it.
# HINT: when the chunks are over, what you kept was no tag after all: yield it.
def split_reasoning(
    chunks: Iterable[str], thinking: bool = False
) -> Iterator[tuple[str, str]]:
    """("reasoning" or "content", piece) in order."""
    # SOLUTION
    held = ""
    for chunk in chain(chunks, [None]):
        held += chunk or ""
        while (tag := "</think>" if thinking else "<think>") in held:
            before, held = held.split(tag, 1)
            if before:
                yield ("reasoning" if thinking else "content"), before
            thinking = not thinking
        keep = 0
        if chunk is not None:
            sizes = range(1, len(tag))
            keep = max((n for n in sizes if held.endswith(tag[:n])), default=0)
        cut = len(held) - keep
        if cut:
            yield ("reasoning" if thinking else "content"), held[:cut]
        held = held[cut:]
    # STUB
    # raise NotImplementedError("13.4: one tag at a time; keep what may begin it")
    # END


# %% 13.5 | The dice of others | bug | level 2 | 15 min
# Every request brings a seed: the same request must give the same tokens, whatever
# runs beside it. This step draws a token for each row of a batch. With one user it is
# always right; tests with one request pass. Find the one mistake. logits: (rows,
# vocab); seeds: one for each row; places: how many tokens each row has written so far.
# Returned is a token for each row, (rows,). A row's chance may depend on its seed and
# its place, and on nothing else; another place must give another chance.
# HINT: call it with one row, then with the same row behind another one. The second
#   row's token changes. Why not the first row's?
# HINT: one generator serves all rows: whose seed does it have, and who uses up its
#   numbers?
# HINT: make a generator for each row, from a seed that mixes seed and place so that
#   (1, 2) and (2, 1) differ: seed * 1_000_003 + place, for instance.
def draw(logits: Tensor, seeds: list[int], places: list[int]) -> Tensor:
    """One token a row: (rows,) int64."""
    # SOLUTION
    chances = [
        torch.rand(1, generator=torch.Generator().manual_seed(seed * 1_000_003 + place))
        for seed, place in zip(seeds, places, strict=True)
    ]
    total = logits.softmax(-1).cumsum(-1)
    total[:, -1] = 1.0
    return torch.searchsorted(total, torch.stack(chances), right=True)[:, 0]
    # STUB
    # dice = torch.Generator().manual_seed(seeds[0] * 1_000_003 + places[0])
    # chances = [torch.rand(1, generator=dice) for _ in seeds]
    # total = logits.softmax(-1).cumsum(-1)
    # total[:, -1] = 1.0
    # return torch.searchsorted(total, torch.stack(chances), right=True)[:, 0]
    # END


# %% 13.6 | What a batch waits for | measure | level 2 | 20 min
# 640 requests wait, and 8 places decode one token each per step (prompts cost nothing
# here). Static: the first 8 run until the last of them is done, then the next 8.
# Continuous: whenever a place is free, the next request takes it in the next step.
# Write both as loops over steps and count the steps, for three lists of lengths:
#   EQUAL:  all 64 tokens;
#   SPREAD: random.Random(0).choices(range(1, 128), k=640);
#   RARE:   every eighth (number 0, 8, 16, ...) 512 tokens, all others 8.
# Report static steps / continuous steps for each, and why the ratio is what it is:
#   "idle":    a short answer keeps its place until the longest of its batch is done;
#   "waiting": static batching waits until a batch is full;
#   "overlap": continuous batching runs more samples at once.
# HINT: static: the sum over batches of eight of the longest in each.
# HINT: continuous: keep a list of what eight places still have to write; each step
#   takes one off each, and a 0 is replaced by the next length.
# HINT: look at RARE: every batch has one long answer and seven that are done after
#   8 of 512 steps. What do their places do in the other 504?
# SOLUTION
RATIO_EQUAL = 1.0
RATIO_SPREAD = 1.77
RATIO_RARE = 6.98
WHY = "idle"
# STUB
# RATIO_EQUAL = None  # static / continuous steps, two decimals
# RATIO_SPREAD = None
# RATIO_RARE = None
# WHY = None  # "idle", "waiting" or "overlap"
# END
