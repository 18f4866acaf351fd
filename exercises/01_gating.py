"""Exercises of chapter 01: gating and balance.

Letters as in the chapter: T tokens, E experts, K picks per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.moe.balance import expert_load, routers
from r1lite.moe.gating import LastScores, Router


# %% 1.1 | What two gates leave | predict | level 1 | 5 min
# A softmax router picks two experts of 64 and does not renormalise.
#
# LEFT_WHEN_FLAT: the sum of the two chosen gates when all 64 logits are equal,
#   as they nearly are at initialisation. A fraction, not per cent.
# LEAD_FOR_HALF: 62 logits are 0 and the two chosen ones are d. For which d do
#   the two gates together hold exactly half of the mass? To two decimals.
#
# Paper first, then Python.
LEFT_WHEN_FLAT: float | None = None  # a number between 0 and 1
LEAD_FOR_HALF: float | None = None  # a number, in nats


# %% 1.2 | The choice of experts | fill | level 2 | 20 min | swaps r1lite.moe.gating.Router.choose
# Return the K experts of each token: scores (T, E) -> (T, K) int64, any order.
#
# The router knows its options:
#   self.method is "noaux_tc" (V3), "group_limited_greedy" (V2) or "greedy";
#   self.e_score_correction_bias (E,) counts for V3's choice only;
#   self.n_group groups of equal size, of which self.topk_group are kept, unless
#   the method is "greedy"; self.top_k is K.
# A group is worth the sum of its two best biased scores in V3, its best score
# in V2. `scores` still belongs to the caller, who makes the weights from it.
def choose(self: Router, scores: Tensor) -> Tensor:
    """The K experts of each token: scores (T, E) -> (T, K) int64."""
    raise NotImplementedError("1.2: choose the experts of each token")


# %% 1.3 | The bias update | fill | level 2 | 15 min | swaps r1lite.moe.balance.update_bias_
# After each optimiser step: move the bias of every expert by gamma towards the
# mean load of its router, then set the counts to zero and `last` to None.
#
# routers(model) lists the routers; expert_load(model) stacks their counts to
# (routers, E) int64 (a copy) and copes with a model that has none. An expert
# below the mean goes up by gamma, one above it down, one exactly on it stays.
# With gamma = 0 only the resetting remains. Return the load that was used.
@torch.no_grad()
def update_bias_(model: nn.Module, gamma: float) -> Tensor:
    """Move the biases in place; returns the load (routers, E) int64."""
    raise NotImplementedError("1.3: move each bias by gamma towards the mean")


# %% 1.4 | The sequence-wise loss | fill | level 3 | 25 min | swaps r1lite.moe.losses.sequence_loss
# V3's equations 17 to 20 without alpha, for one router:
#
#   f_i = E / (K n) * how many of the sequence's n tokens have expert i in their
#         top K of the *unbiased* scores (not the picks that were made)
#   P_i = mean over those tokens of s_i / (sum over j of s_j)
#   the loss is sum_i f_i P_i, and the mean of that over the sequences.
#
# last.scores: (batch, seq, E) with a graph; last.top_k: K.
# mask: (batch, seq), True where a token is real; None counts all. Padding
# counts neither in f nor in P, and n is the number of real tokens of a sequence.
# A sequence without any gives 0 and still counts in the mean over sequences.
def sequence_loss(last: LastScores, mask: Tensor | None = None) -> Tensor:
    """V3's sequence-wise balance loss of one router, without alpha: a scalar."""
    raise NotImplementedError("1.4: sum f_i P_i of each sequence, then the mean")


# %% 1.5 | A router that drifts | bug | level 2 | 10 min
# A colleague's V3 router trains well for a day. Then the weights of rarely used
# experts swell, and those of popular ones shrink or turn negative. Find the bug
# and repair it.
#
# scores (T, E) are sigmoids, bias (E,) belongs to the choice; returns the
# weights (T, K), which add up to `scaling` for each token, and the experts.
def weigh(
    scores: Tensor, bias: Tensor, top_k: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Weights (T, K) and experts (T, K) of each token."""
    weights, experts = (scores + bias).topk(top_k, dim=-1)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scaling, experts


# %% 1.6 | Does a temperature balance? | measure | level 2 | 15 min
# "Raise the temperature of the softmax and the load evens out", says the
# article. Measure it. `skewed_logits` are a router's logits in which a few
# experts are popular. Two routers use the temperature t:
#   greedy: the top two of softmax(logits / t);
#   sampled: two experts drawn without replacement with those probabilities
#            (torch.multinomial).
# Take r1lite.moe.balance.load_entropy of the tokens per expert.
#
# GREEDY_GAIN: load entropy of the greedy router at t = 4 minus that at t = 0.25.
# SAMPLED_GAIN: the same for the sampled router, to two decimals.
# WHY: the letter of the explanation that fits both numbers.
#   "A" a temperature flattens the probabilities, so the load follows in both;
#   "B" dividing all logits by t keeps their order, so a top-k choice cannot
#       notice; only a router that draws its experts does;
#   "C" a temperature changes the order of the logits, but too little to matter.
def skewed_logits() -> Tensor:
    """(4096, 16) logits; expert 0 is the most popular, expert 15 the least."""
    noise = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    return noise + torch.linspace(1.5, -1.5, 16)


GREEDY_GAIN: float | None = None  # a difference of two load entropies
SAMPLED_GAIN: float | None = None  # the same, sampled
WHY: str | None = None  # "A", "B" or "C"
