"""Exercises of chapter 6: who sends what, who adds what, who holds what."""

import torch
from torch import Tensor

# %% 6.1 | The bytes of one dispatch | predict | level 1 | 10 min
# V3 in training: 256 experts lie on 64 ranks, and the router spreads its picks
# evenly. A rank holds 4,096 tokens; each goes to 8 experts. The dispatcher sends a
# row for every pick (7,168 numbers, FP8, so one byte each) to the rank that holds the
# expert. How many bytes does this rank send to *others*, one layer, forward, on the
# way out only?
# HINT: first the rows: tokens times picks. Then ask where they go.
# HINT: of 64 ranks one is the sender itself. What stays at home is not sent.
# HINT: 4096 * 8 rows, 63 of 64 of them leave, 7168 bytes each.
# SOLUTION
BYTES_SENT = 4096 * 8 * 63 // 64 * 7168
# STUB
# BYTES_SENT = None  # bytes
# END


# %% 6.2 | From senders to experts | fill | level 2 | 15 min
# After the exchange a rank holds rows ordered by (sender, expert): first all that
# rank 0 sent, sorted by expert, then all of rank 1, and so on. `arriving` (ranks,
# experts) int64 says how many rows of each kind there are; zeros are usual. Return
# `order` (rows,) int64, so that rows[order] is sorted by (expert, sender), and rows
# of the same expert and sender keep their order.
# HINT: write down, for [[1, 1], [2, 0]], which expert each of the four rows is for.
#   Then you only have to sort.
# HINT: torch.arange(experts).repeat(ranks) names the expert of each entry of
#   arriving.flatten(); repeat_interleave makes as many of each as arrived.
# HINT: argsort(stable=True) of these names is the order: equal names keep their
#   place, and their places are in the order of the senders.
def expert_major(arriving: Tensor) -> Tensor:
    """The order that sorts rows by (expert, sender), (rows,) int64."""
    # SOLUTION
    ranks, experts = arriving.shape
    names = torch.arange(experts).repeat(ranks)
    return names.repeat_interleave(arriving.flatten()).argsort(stable=True)
    # STUB
    # raise NotImplementedError("6.2: name each row's expert, then sort")
    # END


# %% 6.3 | The way home | fill | level 2 | 20 min
# The backward pass of an exchange, for all ranks at once; a rank is a place in a
# list. In the forward pass rank r sent its rows, ordered by destination: the first
# send[r][0] to rank 0, the next send[r][1] to rank 1, and so on. What a rank received
# it has ordered by sender. Now every rank holds the gradient of what it received:
# slopes[r], (rows received by r, width). Return for every rank the gradient of the
# rows it sent, in the order in which they lay there.
# HINT: rank r received send[q][r] rows from each rank q. So slopes[r] is made of
#   pieces of those sizes, one for each sender.
# HINT: slopes[r].split(sizes) takes it apart. The piece of sender q belongs to q.
# HINT: the gradient of rank q's rows: its pieces on rank 0, 1, 2 ... one after the
#   other, because its rows lay in the order of their destinations.
def send_home(slopes: list[Tensor], send: list[list[int]]) -> list[Tensor]:
    """For every rank the gradient of its own rows, (sum(send[r]), width)."""
    # SOLUTION
    ranks = range(len(send))
    pieces = [slopes[r].split([send[q][r] for q in ranks]) for r in ranks]
    return [torch.cat([pieces[r][q] for r in ranks]) for q in ranks]
    # STUB
    # raise NotImplementedError("6.3: split by sender, give every piece back")
    # END


# %% 6.4 | Who adds up what | bug | level 2 | 15 min
# Ranks are numbered d * ep + e. Those with the same d hold all experts together,
# each its own; those with the same e hold copies of the same ones. All other
# parameters every rank has alike. Each loss is a share of the global mean. grads[r]
# is rank r's dictionary from a parameter's name to its gradient after the backward
# pass; `experts` are the names of expert parameters. Return the same list with the
# gradients that the optimizers need. The function runs and the loss falls. Find the
# one mistake.
# HINT: with ep 1, or with one copy of everything, it is right. What differs when both
#   dp and ep are 2?
# HINT: whose expert is it that gets added to rank 0's? Draw the four ranks as a
#   square: a row shares a set of experts, a column repeats one part of it.
# HINT: of four ranks 0 and 2 hold the same experts. They have the same rank % ep.
def add_up(
    grads: list[dict[str, Tensor]], experts: set[str], ep: int
) -> list[dict[str, Tensor]]:
    """The gradients of the global batch, on every rank."""
    # SOLUTION
    everyone, added = range(len(grads)), []
    for rank in everyone:
        copies = [r for r in everyone if r % ep == rank % ep]
        found = {}
        for name in grads[rank]:
            group = copies if name in experts else everyone
            found[name] = torch.stack([grads[r][name] for r in group]).sum(0)
        added.append(found)
    return added
    # STUB
    # everyone, added = range(len(grads)), []
    # for rank in everyone:
    #     copies = [r for r in everyone if r // ep == rank // ep]
    #     found = {}
    #     for name in grads[rank]:
    #         group = copies if name in experts else everyone
    #         found[name] = torch.stack([grads[r][name] for r in group]).sum(0)
    #     added.append(found)
    # return added
    # END


# %% 6.5 | Copies for busy experts | fill | level 2 | 20 min
# A server has `slots` places for the experts of a layer, more than it has experts.
# `load` (E,) counts the tokens of each. Every expert gets one slot. Each spare slot,
# one after the other, goes to the expert whose copies are busiest at that moment:
# copies of an expert share its tokens evenly. Of equals the first one gets it. Return
# how many slots each expert has, (E,) int64.
# HINT: begin with ones and hand out slots - E more, one in each turn of a loop.
# HINT: busy is not the load but the load of *one* copy: load / copies.
# HINT: copies[(load / copies).argmax()] += 1, as often as there are spare slots;
#   argmax takes the first of equals on a CPU.
def share_slots(load: Tensor, slots: int) -> Tensor:
    """Copies of each expert, (E,) int64, at least 1, `slots` together."""
    # SOLUTION
    copies = torch.ones(len(load), dtype=torch.int64)
    for _ in range(slots - len(load)):
        each = load.double() / copies
        copies[int(each.argmax())] += 1
    return copies
    # STUB
    # raise NotImplementedError("6.5: one each, then the busiest, one by one")
    # END


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
# HINT: R1Config.preset("v3") is the configuration; .total / 1e9 are the GB.
# HINT: try ep 1, 2, 4 ... 64 in a loop; chapter 06 prints four of them.
# HINT: the four parts are attributes of what rank_memory returns. DualPipe holds the
#   micro-batches of two stages.
# SOLUTION
SMALLEST_EP = 64
LARGEST_PART = "activations"
# STUB
# SMALLEST_EP = None  # a power of two
# LARGEST_PART = None  # "weights", "gradients", "optimizer" or "activations"
# END
