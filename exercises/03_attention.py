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
LATENT_BYTES: int | None = None  # bytes
FULL_BYTES: int | None = None  # bytes


# %% 3.2 | Turning pairs | fill | level 2 | 15 min | swaps r1lite.attention.rope.rotate
# Turn the pairs of x by their angles. Pair i, (a, b), becomes
#   (a cos_i - b sin_i, b cos_i + a sin_i).
#
# x: (..., d); cos, sin: (..., d/2), broadcastable against the pairs.
# interleave=True:  pair i is (x[2i], x[2i + 1]).
# interleave=False: pair i is (x[i], x[i + d/2]).
# Either way the result is written in halves: first all the turned a, then all
# the turned b. Do not write into x; gradients must flow through it.
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """Turn the pairs of x: (..., d) -> (..., d), written in halves."""
    raise NotImplementedError("3.2: turn the pairs")


# %% 3.3 | RMSNorm | fill | level 1 | 10 min | swaps r1lite.attention.norm.RMSNorm.forward
# x / sqrt(mean(x^2) + eps) * weight over the last dimension.
#
# x: (..., size) -> the same shape and dtype. self.weight is (size,), self.eps a
# float. The mean is taken in float32 also where x is bfloat16; the result of the
# division goes back to x's dtype before the weight is applied.
def forward(self: RMSNorm, x: Tensor) -> Tensor:
    """Normalise x: (..., size) -> the same shape and dtype."""
    raise NotImplementedError("3.3: normalise by the root mean square")


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
def absorbed(
    self: MLA, q_nope: Tensor, q_rope: Tensor, past: Tensor, mask: Tensor | None
) -> Tensor:
    """Attend to latents; returns (batch, 1, heads * v)."""
    raise NotImplementedError("3.4: attend to the latents")


# %% 3.5 | A chat that loses the thread | bug | level 2 | 15 min
# `read` feeds tokens one by one to a layer and its cache, and returns
# (batch, new, hidden). The first call is right. In a chat it is called again for
# every message, with the cache that holds the earlier ones, and from the second
# message on the answers get worse: no error, just worse. Find the line.
#
# rope(positions, dtype) takes positions (1, new) and returns cos and sin.
# cache.length counts the tokens held; cache.advance(n) adds n to it.
def read(layer: MLA, rope: Rope, x: Tensor, cache: LatentCache) -> Tensor:
    """Continue the cached sequence by x: (batch, new, hidden) -> the same."""
    outputs = []
    for t in range(x.shape[1]):
        position = torch.tensor([[t]])
        turn = rope(position, x.dtype)
        outputs.append(layer(x[:, t : t + 1], turn, cache=cache))
        cache.advance(1)
    return torch.cat(outputs, dim=1)


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
KEPT: int | None = None  # a number of pairs
DIVIDED: int | None = None  # a number of pairs
WHY: str | None = None  # "a", "b", "c" or "d"
