"""Exercises of chapter 6: who sends what, who adds what, who holds what."""

import torch
from torch import Tensor


# %% 6.1 | The bytes of one dispatch | predict | level 1 | 10 min
# V3 in training: 256 experts lie on 64 ranks, and the router spreads its picks
# evenly. A rank holds 4,096 tokens; each goes to 8 experts. The dispatcher sends a
# row for every pick (7,168 numbers, FP8, so one byte each) to the rank that holds the
# expert. How many bytes does this rank send to *others*, one layer, forward, on the
# way out only?
BYTES_SENT = None  # bytes


# %% 6.2 | From senders to experts | fill | level 2 | 15 min
# After the exchange a rank holds rows ordered by (sender, expert): first all that
# rank 0 sent, sorted by expert, then all of rank 1, and so on. `arriving` (ranks,
# experts) int64 says how many rows of each kind there are; zeros are usual. Return
# `order` (rows,) int64, so that rows[order] is sorted by (expert, sender), and rows
# of the same expert and sender keep their order.
def expert_major(arriving: Tensor) -> Tensor:
    """The order that sorts rows by (expert, sender), (rows,) int64."""
    raise NotImplementedError("6.2: name each row's expert, then sort")


# %% 6.3 | The way home | fill | level 2 | 20 min
# The backward pass of an exchange, for all ranks at once; a rank is a place in a
# list. In the forward pass rank r sent its rows, ordered by destination: the first
# send[r][0] to rank 0, the next send[r][1] to rank 1, and so on. What a rank received
# it has ordered by sender. Now every rank holds the gradient of what it received:
# slopes[r], (rows received by r, width). Return for every rank the gradient of the
# rows it sent, in the order in which they lay there.
def send_home(slopes: list[Tensor], send: list[list[int]]) -> list[Tensor]:
    """For every rank the gradient of its own rows, (sum(send[r]), width)."""
    raise NotImplementedError("6.3: split by sender, give every piece back")


# %% 6.4 | Who adds up what | bug | level 2 | 15 min
# Ranks are numbered d * ep + e. Those with the same d hold all experts together,
# each its own; those with the same e hold copies of the same ones. All other
# parameters every rank has alike. Each loss is a share of the global mean. grads[r]
# is rank r's dictionary from a parameter's name to its gradient after the backward
# pass; `experts` are the names of expert parameters. Return the same list with the
# gradients that the optimizers need. The function runs and the loss falls. Find the
# one mistake.
def add_up(
    grads: list[dict[str, Tensor]], experts: set[str], ep: int
) -> list[dict[str, Tensor]]:
    """The gradients of the global batch, on every rank."""
    everyone, added = range(len(grads)), []
    for rank in everyone:
        copies = [r for r in everyone if r // ep == rank // ep]
        found = {}
        for name in grads[rank]:
            group = copies if name in experts else everyone
            found[name] = torch.stack([grads[r][name] for r in group]).sum(0)
        added.append(found)
    return added


# %% 6.5 | Copies for busy experts | fill | level 2 | 20 min
# A server has `slots` places for the experts of a layer, more than it has experts.
# `load` (E,) counts the tokens of each. Every expert gets one slot. Each spare slot,
# one after the other, goes to the expert whose copies are busiest at that moment:
# copies of an expert share its tokens evenly. Of equals the first one gets it. Return
# how many slots each expert has, (E,) int64.
def share_slots(load: Tensor, slots: int) -> Tensor:
    """Copies of each expert, (E,) int64, at least 1, `slots` together."""
    raise NotImplementedError("6.5: one each, then the busiest, one by one")


# %% 6.6 | How many ranks must share V3's experts | measure | level 2 | 15 min
# Ask the planner. V3 on 2,048 H800s (80 GB) with 16 pipeline stages, 15,360 rows of
# 4,096 tokens, activations in FP8 (memory.Precision(activation=1)), schedule
# "dualpipe", everything else as it is by default:
#     from r1lite.planner import layout, memory
#     layout.Layout(gpus=2048, pp=16, ep=..., rows=15360, seq=4096)
#     memory.rank_memory(config, that, stage=8, precision=..., schedule=...)
# Which is the smallest ep, a power of two, at which a rank of stage 8 needs less than
# 80 GB? And what takes most of that rank's memory then: "weights", "gradients",
# "optimizer" or "activations"?
SMALLEST_EP = None  # a power of two
LARGEST_PART = None  # "weights", "gradients", "optimizer" or "activations"
