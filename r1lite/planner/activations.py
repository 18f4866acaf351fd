"""Numbers that a block keeps between its forward and its backward pass.

Policies "none", "selective" and "block" are those of `checkpoint_blocks_`, counted
operation by operation as torch keeps them on a CPU in float32. "v3" is what the
paper keeps (arXiv 2412.19437, sections 3.2.3 and 3.3.3) where kernels are fused.
"""

from __future__ import annotations

from r1lite.config import R1Config
from r1lite.errors import R1Error

POLICIES = ("none", "selective", "block", "v3")


def layer_activations(c: R1Config, layer: int, policy: str = "none") -> float:
    """Numbers per token that block `layer` keeps; an int64 counts as two.

    The block's output is counted, its input belongs to the block before.

    Raises:
        R1Error: the policy is unknown.
    """
    if policy not in POLICIES:
        raise R1Error(f"policy: {policy!r} is unknown; choose " + ", ".join(POLICIES))
    router = float(_router(c, policy)) if c.is_moe(layer) else 0.0
    if policy == "block":  # the output; what the balance loss needs of the router
        return c.hidden_size + router
    return _attention(c, policy) + _mlp(c, layer, policy) + router


def _attention(c: R1Config, policy: str) -> int:
    """Both norms and residual sums, queries, latent, the attention core."""
    hidden, heads, low = c.hidden_size, c.num_attention_heads, c.q_lora_rank or 0
    query, value = heads * c.qk_head_dim, heads * c.v_head_dim
    if policy == "v3":  # norms' inputs, both latents, the core's output and sums
        return 2 * hidden + c.cache_width + low + value + heads
    if policy == "selective":  # results of products; values are as wide as keys
        queries = low or query
        return queries + c.cache_width + query + heads + 2 * hidden
    norms = 2 * (2 * hidden + 1) + 2 * c.kv_lora_rank + 1
    if low:
        norms += low + 2 * low + 1
    core = 4 * query + heads  # queries, keys, values, output, sums
    if value < query:  # the output without the zeros that made values as wide
        core += value
    return norms + 2 * hidden + c.cache_width + core


def _mlp(c: R1Config, layer: int, policy: str) -> int:
    """Gate and up, what is made of them, and rows on their way to experts."""
    hidden, k = c.hidden_size, c.num_experts_per_tok
    routed, width = 0, c.intermediate_size
    if c.is_moe(layer):
        width = c.n_shared_experts * c.moe_intermediate_size
        routed = k * c.moe_intermediate_size
    if policy == "none":  # also silu, product; rows sorted, rows back, two orders
        return 4 * (width + routed) + (2 * k * hidden + 4 * k if routed else 0)
    if policy == "selective":  # results of the down projections
        shared = hidden if width else 0
        return 2 * (width + routed) + shared + (k * hidden if routed else 0)
    return 2 * (width + routed) + (2 * k * hidden if routed else 0)


def _router(c: R1Config, policy: str) -> int:
    """Logits, scores, picks; with everything kept also gates and their sum."""
    kept = 2 * c.n_routed_experts + 2 * c.num_experts_per_tok
    if policy != "none":
        return kept
    return kept + c.num_experts_per_tok * (1 + c.norm_topk_prob) + c.norm_topk_prob
