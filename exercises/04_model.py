"""Exercises of chapter 4: the block, multi-token prediction, sampling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.attention.cache import LatentCache
from r1lite.generation import Sampling, filter_logits
from r1lite.model import Block, R1Model
from r1lite.mtp import MTP, mtp_targets


# %% 4.1 | What the MTP module costs | predict | level 1 | 10 min
# How many parameters does the MTP module add to `nano`? Work it out on paper
# from R1Config.preset("nano"): hidden 96, 4 heads, q_lora_rank None,
# kv_lora_rank 48, head widths 32 (no position), 16 (rotary) and 32 (values),
# 8 routed experts and 1 shared, each of inner width 64. A module's parameters
# are what its optimiser moves; what it shares with the trunk is not added.
MTP_OF_NANO = None  # your number


# %% 4.2 | The block | fill | level 1 | 10 min | swaps r1lite.model.Block.forward
# One pre-norm residual block. x is (batch, seq, hidden), and so is the result.
# `self.self_attn` takes (x, turn, mask, cache), `self.mlp` takes x; the two
# norms are `self.input_layernorm` and `self.post_attention_layernorm`.
def block_forward(
    self: Block,
    x: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    cache: LatentCache | None = None,
) -> Tensor:
    """x: (batch, seq, hidden) -> the same shape."""
    raise NotImplementedError("4.2: attention and mlp, each on a normed copy")


# %% 4.3 | It trains well | bug | level 2 | 15 min | swaps r1lite.mtp.MTP.forward
# This MTP module trains without a complaint, and drafts nonsense as soon as it
# gets the weights of DeepSeek's release. Find the one mistake. `next_embeds` is
# the embedding of token i+1, `hidden` the trunk's state at token i; both are
# (batch, seq, hidden), and so is the result.
def mtp_forward(
    self: MTP,
    next_embeds: Tensor,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    cache: LatentCache | None = None,
) -> Tensor:
    """Both inputs (batch, seq, hidden), already aligned -> the same shape."""
    both = torch.cat((self.hnorm(hidden), self.enorm(next_embeds)), dim=-1)
    return self.norm(self.block(self.eh_proj(both), turn, mask, cache))


# %% 4.4 | The loss two tokens on | fill | level 3 | 25 min | swaps r1lite.mtp.mtp_loss
# Mean cross-entropy of token i+2 over the positions that count. input_ids is
# (batch, seq); `hidden` (batch, seq, hidden) is the trunk's output for them.
# `model.mtp_hidden(input_ids, hidden, position_ids=, attention_mask=,
# document_ids=)` gives states (batch, seq - 1, hidden), `model.lm_head` turns
# states into logits, and `mtp_targets(input_ids, document_ids, target_mask)`
# gives targets and validity, both (batch, seq - 2). If nothing counts, the loss
# is 0, and still has a gradient.
def mtp_loss(
    model: R1Model,
    input_ids: Tensor,
    hidden: Tensor,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    target_mask: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of token i+2 in nats: a scalar."""
    raise NotImplementedError("4.4: states, targets, mean over what counts")


# %% 4.5 | Pick a token | fill | level 2 | 20 min | swaps r1lite.generation.choose
# logits (batch, vocab) and one uniform number a row, `uniform` (batch,) in
# [0, 1). Return the token (batch,) int64 and its log-probability (batch,). The
# log-probability is the one under the temperature, before any filter: a policy
# gradient needs that. Temperature 0 is greedy; there the log-probability is
# that of the raw logits. `filter_logits(logits, how)` sets what is cut to -inf.
def choose(logits: Tensor, how: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pick one token a row: (token, log-probability), both (batch,)."""
    raise NotImplementedError("4.5: cumulative sum, then search")


# %% 4.6 | Worse than knowing nothing | measure | level 2 | 15 min
# Build `nano` with initializer_range=0.2 and measure its first loss, the mean
# over four seeds on 4 rows of 64 random ids, no training. It lies well above
# log(1024) = 6.93, the loss of a model that knows nothing. Report it to within
# 0.2 nats, and name the reason:
#   "depth":    the residual stream grows with every block;
#   "head":     the final norm gives states of size 1, so the logits' variance
#               is hidden_size x std^2, and a loss rises by half of it;
#   "experts":  the router sends all tokens to few experts.
FIRST_LOSS = None  # nats, the mean over four seeds
REASON = None  # "depth", "head" or "experts"
