"""Exercises of chapter 9: judges, advantages, clips, and a judge betrayed."""

import torch
from torch import Tensor

# %% 9.1 | Three answers | predict | level 1 | 10 min
# A reward model of Bradley and Terry's kind says: A beats B with probability 0.8,
# and B beats C with probability 0.8. With what probability does A beat C? (It has
# one reward for each answer, so this is no longer a matter of taste.)
# HINT: a probability of 0.8 is a difference of two rewards. Which?
# HINT: sigmoid(d) = 0.8 means exp(d) = 0.8 / 0.2 = 4: odds of four to one.
# HINT: differences add, so odds multiply: sixteen to one. Turn the odds back
#   into a probability.
# SOLUTION
A_BEATS_C = 16 / 17
# STUB
# A_BEATS_C = None  # a probability
# END


# %% 9.2 | Where the reward is read | fill | level 2 | 15 min
# states (batch, seq, hidden) are the trunk's, real (batch, seq) is True on real
# tokens. A row is padded on the left, on the right, or not at all; real tokens
# stand side by side. head (hidden,) is the reward head's one row. Return the reward
# of each row, (batch,): the head's product with the state of its last real token.
# HINT: counting the real tokens gives the place only if the padding is on the right.
# HINT: the largest index at which `real` is True is the place, whichever side is
#   padded.
# HINT: torch.arange(seq) times `real`, and the maximum over each row, is that index.
#   Then states[torch.arange(batch), last] @ head.
def last_rewards(states: Tensor, real: Tensor, head: Tensor) -> Tensor:
    """One reward a row, (batch,)."""
    # SOLUTION
    last = (torch.arange(real.shape[1]) * real).amax(1)
    return states[torch.arange(len(states)), last] @ head
    # STUB
    # raise NotImplementedError("9.2: find the last real token, read its state")
    # END


# %% 9.3 | One advantage a token | fill | level 3 | 25 min
# Generalised advantage estimation. rewards, values, mask: (batch, seq); a row's
# answer is its run of True in the mask, somewhere in the row, and may be empty.
#     d_t = r_t + gamma * V_(t+1) - V_t
#     A_t = d_t + gamma * lam * A_(t+1)
# Behind the last token of an answer both V and A are 0, whatever the tensors hold
# there. Return the advantages, and the returns A + V; both 0 outside the answers.
# The tensors you are given stay as they are.
# HINT: go from the last column to the first and keep two tensors of shape (batch,):
#   the advantage and the value of the column behind.
# HINT: where the mask is False both must become 0 again, or the padding's values
#   leak into the answer in front of it.
# HINT: delta = rewards[:, t] + gamma * next_value - values[:, t]; following =
#   torch.where(mask[:, t], delta + gamma * lam * following, 0.0); next_value
#   likewise from values[:, t].
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (batch, seq)."""
    # SOLUTION
    following = next_value = rewards.new_zeros(len(rewards))
    advantages = torch.zeros_like(rewards)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = following
    return advantages, torch.where(mask, advantages + values, 0.0)
    # STUB
    # raise NotImplementedError("9.3: from the last column to the first")
    # END


# %% 9.4 | A value that cannot come back | bug | level 2 | 15 min
# The clipped value loss, as many repositories had it once. A value that is held
# within `clip` of what it was may not run ahead of its evidence. This one trains,
# its loss is even smaller than it should be, and a value that was thrown far off by
# one bad update stays there for good. Find the one mistake. All tensors (tokens,);
# returns the mean, a scalar.
# HINT: take old value 0, return 0, clip 0.2, and a value that has jumped to 3. What
#   is the gradient?
# HINT: the held value is 0.2 there and does not depend on the value: its error has
#   no gradient. Which of the two errors must count?
# HINT: clipping is to be pessimistic: the larger of the two errors.
def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the mean of the squared errors that count."""
    # SOLUTION
    held = old + (values - old).clamp(-clip, clip)
    free_error, held_error = (values - returns) ** 2, (held - returns) ** 2
    return 0.5 * torch.maximum(free_error, held_error).mean()
    # STUB
    # held = old + (values - old).clamp(-clip, clip)
    # free_error, held_error = (values - returns) ** 2, (held - returns) ** 2
    # return 0.5 * torch.minimum(free_error, held_error).mean()
    # END


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
# HINT: rewards = zeros(1, n) with a 1 at the end, values zeros, mask all True.
# HINT: with zero values the first advantage is lambda to the power n - 1. For which
#   n is that below 0.1?
# HINT: with the value 1 everywhere the first advantage is 0 for both lambdas: a
#   discounted reward would not be the same for both.
# SOLUTION
FIRST_LENGTH = 46
WHY = "critic"
# STUB
# FIRST_LENGTH = None  # a whole number of tokens
# WHY = None  # "discount", "critic" or "variance"
# END


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
# HINT: reward.view(-1, n).argmax(1, keepdim=True) chooses; quality.view(-1, n)
#   .gather(1, chosen).mean() is what it is worth.
# HINT: the largest of many sums is large because of the part with the heavier tail.
#   For the first judge both parts have the same tail.
# HINT: the second judge is best between 4 and 64; from then on a large reward means a
#   large error. That is why more optimisation against a judge is not better.
# SOLUTION
BEST_N = 16
FIRST_JUDGE = "rises"
# STUB
# BEST_N = None  # a power of two
# FIRST_JUDGE = None  # "rises" or "falls"
# END
