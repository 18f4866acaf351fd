"""Exercises of chapter 9: judges, advantages, clips, and a judge betrayed."""

import torch
from torch import Tensor


# %% 9.1 | Three answers | predict | level 1 | 10 min
# A reward model of Bradley and Terry's kind says: A beats B with probability 0.8,
# and B beats C with probability 0.8. With what probability does A beat C? (It has
# one reward for each answer, so this is no longer a matter of taste.)
A_BEATS_C = None  # a probability


# %% 9.2 | Where the reward is read | fill | level 2 | 15 min
# states (batch, seq, hidden) are the trunk's, real (batch, seq) is True on real
# tokens. A row is padded on the left, on the right, or not at all; real tokens
# stand side by side. head (hidden,) is the reward head's one row. Return the reward
# of each row, (batch,): the head's product with the state of its last real token.
def last_rewards(states: Tensor, real: Tensor, head: Tensor) -> Tensor:
    """One reward a row, (batch,)."""
    raise NotImplementedError("9.2: find the last real token, read its state")


# %% 9.3 | One advantage a token | fill | level 3 | 25 min
# Generalised advantage estimation. rewards, values, mask: (batch, seq); a row's
# answer is its run of True in the mask, somewhere in the row, and may be empty.
#     d_t = r_t + gamma * V_(t+1) - V_t
#     A_t = d_t + gamma * lam * A_(t+1)
# Behind the last token of an answer both V and A are 0, whatever the tensors hold
# there. Return the advantages, and the returns A + V; both 0 outside the answers.
# The tensors you are given stay as they are.
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (batch, seq)."""
    raise NotImplementedError("9.3: from the last column to the first")


# %% 9.4 | A value that cannot come back | bug | level 2 | 15 min
# The clipped value loss, as many repositories had it once. A value that is held
# within `clip` of what it was may not run ahead of its evidence. This one trains,
# its loss is even smaller than it should be, and a value that was thrown far off by
# one bad update stays there for good. Find the one mistake. All tensors (tokens,);
# returns the mean, a scalar.
def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the mean of the squared errors that count."""
    held = old + (values - old).clamp(-clip, clip)
    free_error, held_error = (values - returns) ** 2, (held - returns) ** 2
    return 0.5 * torch.minimum(free_error, held_error).mean()


# %% 9.5 | How far the last token's reward reaches | measure | level 2 | 15 min
# An answer of n tokens earns 1 on its last token and nothing before; gamma is 1. The
# critic is new and says 0 everywhere. With lambda 1 the first token's advantage is
# 1, whatever n is. Measure it with lambda 0.95, with your `gae` or the package's,
# and report the smallest n at which it is below 0.1. Then give the critic the truth
# (the value 1 everywhere) and look at both lambdas again. Why does the first token
# hear so little of the reward?
#   "discount": with lambda below 1 a later reward is worth less, whatever the critic;
#   "critic":   below 1 each token takes a part of its news from the critic, and this
#               critic has none;
#   "variance": the outcome is too noisy to be believed.
FIRST_LENGTH = None  # a whole number of tokens
WHY = None  # "discount", "critic" or "variance"


# %% 9.6 | The best of n by a bad judge | measure | level 3 | 20 min
# Take 2 ** 20 answers. Each has a true quality, torch.randn, and a judge's reward:
# the quality plus an error of the judge. Group the answers by n, let the judge
# choose the best of each group, and take the mean true quality of the chosen, for
# n = 1, 2, 4, ..., 4096. Do it for two judges: one whose errors are torch.randn
# too, and one whose errors are mostly small but sometimes huge: 0.5 *
# torch.distributions.StudentT(1.5).sample((2 ** 20,)). Report at which n the second
# judge's chosen answers are best (a neighbour in the list will do: it is flat
# there), and what happens to the *first* judge's as n grows:
#   "rises":  the true quality keeps rising;
#   "falls":  it falls after a peak, as the second judge's does.
BEST_N = None  # a power of two
FIRST_JUDGE = None  # "rises" or "falls"
