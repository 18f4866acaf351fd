"""Exercises of chapter 03: attention, RoPE and the cache."""

import torch
from torch import Tensor

from r1lite.attention.cache import LatentCache
from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import Rope

# %% 3.1 | What one token leaves behind | predict | level 1 | 5 min
# The preset "small" has 12 layers, 12 heads, kv_lora_rank 256, qk_nope_head_dim
# 64, qk_rope_head_dim 32 and v_head_dim 64. The cache is bfloat16, 2 bytes a
# number.
#
# LATENT_BYTES: bytes that one token leaves in the cache of all layers (MLA).
# FULL_BYTES: the same if every head kept its own whole key and its value.
#
# Paper first, then Python.
# HINT: MLA keeps, in each layer, one latent and one rotated key. Heads do not
#   come into it.
# HINT: without MLA each head keeps a key of qk_nope + qk_rope numbers and a value.
# HINT: 12 layers * (256 + 32) numbers * 2 bytes, and 12 layers * 12 heads *
#   (64 + 32 + 64) numbers * 2 bytes.
# SOLUTION
LATENT_BYTES: int | None = 12 * (256 + 32) * 2
FULL_BYTES: int | None = 12 * 12 * (64 + 32 + 64) * 2
# STUB
# LATENT_BYTES: int | None = None  # bytes
# FULL_BYTES: int | None = None  # bytes
# END


# %% 3.2 | Turning pairs | fill | level 2 | 15 min | swaps r1lite.attention.rope.rotate
# Turn the pairs of x by their angles. Pair i, (a, b), becomes
#   (a cos_i - b sin_i, b cos_i + a sin_i).
#
# x: (..., d); cos, sin: (..., d/2), broadcastable against the pairs.
# interleave=True:  pair i is (x[2i], x[2i + 1]).
# interleave=False: pair i is (x[i], x[i + d/2]).
# Either way the result is written in halves: first all the turned a, then all
# the turned b. Do not write into x; gradients must flow through it.
# HINT: x[..., 0::2] are the even places, x.chunk(2, dim=-1) are the two halves.
# HINT: pick a and b in an `if`, then one formula serves both layouts.
# HINT: torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """Turn the pairs of x: (..., d) -> (..., d), written in halves."""
    # SOLUTION
    if interleave:
        a, b = x[..., 0::2], x[..., 1::2]
    else:
        a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    # STUB
    # raise NotImplementedError("3.2: turn the pairs")
    # END


# %% 3.3 | RMSNorm | fill | level 1 | 10 min | swaps r1lite.attention.norm.RMSNorm.forward
# x / sqrt(mean(x^2) + eps) * weight over the last dimension.
#
# x: (..., size) -> the same shape and dtype. self.weight is (size,), self.eps a
# float. The mean is taken in float32 also where x is bfloat16; the result of the
# division goes back to x's dtype before the weight is applied.
# HINT: wide = x.float() first; square, mean over dim=-1 with keepdim=True.
# HINT: eps belongs under the root, beside the mean: (mean + eps).sqrt().
# HINT: return self.weight * (wide / root).to(x.dtype).
def forward(self: RMSNorm, x: Tensor) -> Tensor:
    """Normalise x: (..., size) -> the same shape and dtype."""
    # SOLUTION
    wide = x.float()
    mean = wide.square().mean(dim=-1, keepdim=True)
    root = (mean + self.eps).sqrt()
    return self.weight * (wide / root).to(x.dtype)
    # STUB
    # raise NotImplementedError("3.3: normalise by the root mean square")
    # END


# %% 3.4 | Decoding without expanding | fill | level 3 | 30 min | swaps r1lite.attention.mla.MLA._absorbed
# One new token attends to the cache without ever making keys and values.
#
# q_nope: (batch, 1, heads, nope); q_rope: (batch, 1, heads, rope), turned.
# past: (batch, kv, rank + rope), the latents, then the shared rotated keys.
# mask: (batch or 1, 1, 1, kv), 0 or -inf, to be added to the scores; or None.
# Returns (batch, 1, heads * v), what o_proj takes.
#
# self.kv_b_proj.weight is (heads * (nope + v), rank): for each head first nope
# rows W_k, then v rows W_v. A head's key would be W_k c, its value W_v c. Also
# there: self.heads, self.nope, self.v, self.rank, self.rope, self.scale.
# (attention_dropout is 0 whenever a model decodes; leave it out.)
# HINT: weight.unflatten(0, (self.heads, -1)) is (heads, nope + v, rank); split it
#   along dim 1 into w_k and w_v.
# HINT: fold first: q_latent[b,h,r] = sum_n q_nope[b,h,n] w_k[h,n,r], an einsum.
#   A score is q_latent times the latent plus q_rope times the shared key.
# HINT: softmax of (scores * scale + mask), mix the *latents* with the weights,
#   (batch, heads, rank), and only then apply w_v: "bhr,hvr->bhv".
def absorbed(
    self: MLA, q_nope: Tensor, q_rope: Tensor, past: Tensor, mask: Tensor | None
) -> Tensor:
    """Attend to latents; returns (batch, 1, heads * v)."""
    # SOLUTION
    w = self.kv_b_proj.weight.unflatten(0, (self.heads, -1))
    w_k, w_v = w.split((self.nope, self.v), dim=1)
    latent, k_rope = past.split((self.rank, self.rope), dim=-1)
    q_latent = torch.einsum("bhn,hnr->bhr", q_nope[:, 0], w_k)
    scores = torch.einsum("bhr,bkr->bhk", q_latent, latent)
    scores = scores + torch.einsum("bhd,bkd->bhk", q_rope[:, 0], k_rope)
    scores = scores * self.scale
    if mask is not None:
        scores = scores + mask[:, 0]
    mixed = torch.einsum("bhk,bkr->bhr", scores.softmax(dim=-1), latent)
    out = torch.einsum("bhr,hvr->bhv", mixed, w_v)
    return out.flatten(1).unsqueeze(1)
    # STUB
    # raise NotImplementedError("3.4: attend to the latents")
    # END


# %% 3.5 | A chat that loses the thread | bug | level 2 | 15 min
# `read` feeds tokens one by one to a layer and its cache, and returns
# (batch, new, hidden). The first call is right. In a chat it is called again for
# every message, with the cache that holds the earlier ones, and from the second
# message on the answers get worse: no error, just worse. Find the line.
#
# rope(positions, dtype) takes positions (1, new) and returns cos and sin.
# cache.length counts the tokens held; cache.advance(n) adds n to it.
# HINT: compare with one call that reads both messages at once. Which of the
#   things that the layer gets can tell the second message that it comes second?
# HINT: print the positions that `rope` is asked for, in both calls.
# HINT: the loop variable counts from 0 in each call; the cache knows where the
#   sequence stands, and `advance` moves it on.
def read(layer: MLA, rope: Rope, x: Tensor, cache: LatentCache) -> Tensor:
    """Continue the cached sequence by x: (batch, new, hidden) -> the same."""
    # SOLUTION
    outputs = []
    for t in range(x.shape[1]):
        position = torch.tensor([[cache.length]])
        turn = rope(position, x.dtype)
        outputs.append(layer(x[:, t : t + 1], turn, cache=cache))
        cache.advance(1)
    return torch.cat(outputs, dim=1)
    # STUB
    # outputs = []
    # for t in range(x.shape[1]):
    #     position = torch.tensor([[t]])
    #     turn = rope(position, x.dtype)
    #     outputs.append(layer(x[:, t : t + 1], turn, cache=cache))
    #     cache.advance(1)
    # return torch.cat(outputs, dim=1)
    # END


# %% 3.6 | The pairs that YaRN stretches | measure | level 2 | 15 min
# Stretch the preset "1b" from 4,096 to 32,768 tokens: YaRN with factor 8, beta_fast
# 32, beta_slow 1, rope_theta 10,000 and 16 pairs (qk_rope_head_dim 32). Compare
# `frequencies` of the preset with those of the preset stretched:
#   R1Config.preset("1b").with_(rope_scaling={"type": "yarn", "factor": 8,
#       "original_max_position_embeddings": 4096})
#
# KEPT: pairs whose speed is the same as before (to one in a thousand).
# DIVIDED: pairs whose speed is divided by the whole factor.
# WHY: why does YaRN keep the fast pairs?
#   "a"  They would overflow bfloat16 when divided.
#   "b"  Divided, neighbours would get almost equal angles, and the layer could no
#        longer tell one place from the next.
#   "c"  At long distances they reach angles that training never showed.
#   "d"  They carry no information, so changing them is a waste.
# HINT: speed, _ = frequencies(config), from r1lite.attention.rope: one number per
#   pair, in radians a token.
# HINT: the ratio plain / stretched is 1 for kept pairs and 8 for divided ones; the
#   ramp between has ratios between.
# HINT: a fast pair has turned many times within 4,096 tokens: it has seen every
#   angle already. What is it good for? Section 9's panel "1 to 4 places back".
# SOLUTION
KEPT: int | None = 6
DIVIDED: int | None = 4
WHY: str | None = "b"
# STUB
# KEPT: int | None = None  # a number of pairs
# DIVIDED: int | None = None  # a number of pairs
# WHY: str | None = None  # "a", "b", "c" or "d"
# END
