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
# HINT: the module is three norms, one projection and one whole block. The
#   embedding and the head belong to the trunk.
# HINT: the projection takes 2 x 96 numbers to 96. A block is two norms, the
#   attention and an MoE layer; its router has 8 x 96 weights, and its bias is a
#   buffer, not a parameter.
# HINT: attention: 96 x 4 x 48, 96 x (48 + 16), a norm of 48, 48 x 4 x 64 and
#   4 x 32 x 96. Experts: nine times 3 x 96 x 64.
# SOLUTION
ATTENTION = 96 * 4 * (32 + 16) + 96 * (48 + 16) + 48 + 48 * 4 * (32 + 32) + 4 * 32 * 96
EXPERTS = (8 + 1) * 3 * 96 * 64
MTP_OF_NANO = ATTENTION + EXPERTS + 8 * 96 + 2 * 96 + 2 * 96 * 96 + 3 * 96
# STUB
# MTP_OF_NANO = None  # your number
# END


# %% 4.2 | The block | fill | level 1 | 10 min | swaps r1lite.model.Block.forward
# One pre-norm residual block. x is (batch, seq, hidden), and so is the result.
# `self.self_attn` takes (x, turn, mask, cache), `self.mlp` takes x; the two
# norms are `self.input_layernorm` and `self.post_attention_layernorm`.
# HINT: a norm stands before each part, never on the path that is added to.
# HINT: the second part reads what the first one has already added.
# HINT: x = x + attention(norm(x)), then x + mlp(other_norm(x)); pass the mask
#   and the cache on.
def block_forward(
    self: Block,
    x: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    cache: LatentCache | None = None,
) -> Tensor:
    """x: (batch, seq, hidden) -> the same shape."""
    # SOLUTION
    x = x + self.self_attn(self.input_layernorm(x), turn, mask, cache)
    return x + self.mlp(self.post_attention_layernorm(x))
    # STUB
    # raise NotImplementedError("4.2: attention and mlp, each on a normed copy")
    # END


# %% 4.3 | It trains well | bug | level 2 | 15 min | swaps r1lite.mtp.MTP.forward
# This MTP module trains without a complaint, and drafts nonsense as soon as it
# gets the weights of DeepSeek's release. Find the one mistake. `next_embeds` is
# the embedding of token i+1, `hidden` the trunk's state at token i; both are
# (batch, seq, hidden), and so is the result.
# HINT: trained from random numbers it works, so every piece is there. What can
#   two programs do differently with the same weights?
# HINT: `eh_proj` multiplies 2 x hidden columns. Which half of them belongs to
#   which input? The paper and the release do not agree, and R1-lite reads the
#   release.
# HINT: the letters of the weight's name are the order: e, then h.
def mtp_forward(
    self: MTP,
    next_embeds: Tensor,
    hidden: Tensor,
    turn: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    cache: LatentCache | None = None,
) -> Tensor:
    """Both inputs (batch, seq, hidden), already aligned -> the same shape."""
    # SOLUTION
    both = torch.cat((self.enorm(next_embeds), self.hnorm(hidden)), dim=-1)
    return self.norm(self.block(self.eh_proj(both), turn, mask, cache))
    # STUB
    # both = torch.cat((self.hnorm(hidden), self.enorm(next_embeds)), dim=-1)
    # return self.norm(self.block(self.eh_proj(both), turn, mask, cache))
    # END


# %% 4.4 | The loss two tokens on | fill | level 3 | 25 min | swaps r1lite.mtp.mtp_loss
# Mean cross-entropy of token i+2 over the positions that count. input_ids is
# (batch, seq); `hidden` (batch, seq, hidden) is the trunk's output for them.
# `model.mtp_hidden(input_ids, hidden, position_ids=, attention_mask=,
# document_ids=)` gives states (batch, seq - 1, hidden), `model.lm_head` turns
# states into logits, and `mtp_targets(input_ids, document_ids, target_mask)`
# gives targets and validity, both (batch, seq - 2). If nothing counts, the loss
# is 0, and still has a gradient.
# HINT: the state at position i has read token i+1 and predicts token i+2; for
#   the last state there is no token to compare with.
# HINT: select the valid states first and run the head on those alone: it is the
#   largest matrix of a small model.
# HINT: sum the cross-entropy (in float32) over the valid positions and divide by
#   how many there are, at least 1.
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
    # SOLUTION
    states = model.mtp_hidden(
        input_ids,
        hidden,
        position_ids=position_ids,
        attention_mask=attention_mask,
        document_ids=document_ids,
    )[:, :-1]
    targets, valid = mtp_targets(input_ids, document_ids, target_mask)
    logits = model.lm_head(states[valid]).float()
    total = F.cross_entropy(logits, targets[valid], reduction="sum")
    return total / valid.sum().clamp(min=1)
    # STUB
    # raise NotImplementedError("4.4: states, targets, mean over what counts")
    # END


# %% 4.5 | Pick a token | fill | level 2 | 20 min | swaps r1lite.generation.choose
# logits (batch, vocab) and one uniform number a row, `uniform` (batch,) in
# [0, 1). Return the token (batch,) int64 and its log-probability (batch,). The
# log-probability is the one under the temperature, before any filter: a policy
# gradient needs that. Temperature 0 is greedy; there the log-probability is
# that of the raw logits. `filter_logits(logits, how)` sets what is cut to -inf.
# HINT: the cumulative sum of the probabilities cuts [0, 1) into one interval a
#   token; find the interval in which the number falls.
# HINT: torch.searchsorted(total, target, right=True) gives the first place whose
#   cumulative sum is above the target. right=True passes over tokens of
#   probability 0.
# HINT: the last sum is not exactly 1; multiply the uniform number by it, and
#   clamp the token to vocab - 1.
def choose(logits: Tensor, how: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pick one token a row: (token, log-probability), both (batch,)."""
    # SOLUTION
    if how.temperature == 0:
        token = logits.argmax(-1)
        logp = logits.log_softmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]
    logp = (logits.float() / how.temperature).log_softmax(-1)
    kept = filter_logits(logp, how).softmax(-1)
    total = kept.cumsum(-1)
    target = uniform[:, None] * total[:, -1:]
    token = torch.searchsorted(total, target, right=True)[:, 0]
    token = token.clamp_max(logits.size(-1) - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]
    # STUB
    # raise NotImplementedError("4.5: cumulative sum, then search")
    # END


# %% 4.6 | Worse than knowing nothing | measure | level 2 | 15 min
# Build `nano` with initializer_range=0.2 and measure its first loss, the mean
# over four seeds on 4 rows of 64 random ids, no training. It lies well above
# log(1024) = 6.93, the loss of a model that knows nothing. Report it to within
# 0.2 nats, and name the reason:
#   "depth":    the residual stream grows with every block;
#   "head":     the final norm gives states of size 1, so the logits' variance
#               is hidden_size x std^2, and a loss rises by half of it;
#   "experts":  the router sends all tokens to few experts.
# HINT: R1Config.preset("nano").with_(initializer_range=0.2), then
#   R1Model(config) after torch.manual_seed(s), and F.cross_entropy.
# HINT: what happens to the loss with 2 layers instead of 4? And with n_group or
#   the experts changed? And with hidden_size 48 instead of 96?
# HINT: half of 96 x 0.2^2 is 1.92. Compare with what you measured.
# SOLUTION
FIRST_LOSS = 8.9
REASON = "head"
# STUB
# FIRST_LOSS = None  # nats, the mean over four seeds
# REASON = None  # "depth", "head" or "experts"
# END
