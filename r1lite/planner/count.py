"""Parameters and FLOPs of a configuration, by part.

A multiplication and an addition are two FLOPs. Norms, activations and softmax are
left out: below one per cent at any size of the book.
"""

from __future__ import annotations

from r1lite.config import R1Config


def attention_parameters(c: R1Config) -> int:
    """One layer's MLA: query path, latent path, output."""
    query = c.num_attention_heads * c.qk_head_dim
    if c.q_lora_rank is None:
        total = c.hidden_size * query
    else:
        total = c.hidden_size * c.q_lora_rank + c.q_lora_rank * (1 + query)
    total += c.hidden_size * c.cache_width + c.kv_lora_rank
    expand = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
    total += c.kv_lora_rank * expand
    total += c.num_attention_heads * c.v_head_dim * c.hidden_size
    if c.attention_bias:
        total += (c.q_lora_rank or 0) + c.cache_width + c.hidden_size
    return total


def expert_parameters(c: R1Config) -> int:
    """One routed expert: gate, up and down."""
    return 3 * c.hidden_size * c.moe_intermediate_size


def layer_parameters(c: R1Config, layer: int) -> dict[str, int]:
    """Parameters of block `layer` by part; routed experts by themselves."""
    parts = {"attention": attention_parameters(c), "norms": 2 * c.hidden_size}
    if c.is_moe(layer):
        parts["router"] = c.n_routed_experts * c.hidden_size
        parts["shared experts"] = c.n_shared_experts * expert_parameters(c)
        parts["routed experts"] = c.n_routed_experts * expert_parameters(c)
    else:
        parts["dense MLP"] = 3 * c.hidden_size * c.intermediate_size
    return parts


def parameters(c: R1Config) -> dict[str, int]:
    """Parameters of the whole model by part; equals the built model's count."""
    table = c.vocab_size * c.hidden_size
    found = {"embedding": table, "head": 0 if c.tie_word_embeddings else table}
    found["norms"] = c.hidden_size
    for layer in range(c.num_hidden_layers):
        for part, count in layer_parameters(c, layer).items():
            found[part] = found.get(part, 0) + count
    if c.num_nextn_predict_layers:
        block = layer_parameters(c, c.num_hidden_layers)
        found["MTP"] = sum(block.values()) + c.hidden_size * (2 * c.hidden_size + 3)
    return found


def active_parameters(c: R1Config) -> int:
    """Parameters one token passes through in the trunk: K of E routed experts."""
    found = parameters(c)
    routed = found.get("routed experts", 0)
    idle = routed * (c.n_routed_experts - c.num_experts_per_tok) // c.n_routed_experts
    return sum(found.values()) - found.get("MTP", 0) - idle


def forward_flops(c: R1Config, seq: int) -> float:
    """FLOPs per token of the trunk's forward pass, averaged over a causal sequence.

    Two per weight that multiplies it (the embedding is a look-up, tied or not),
    and the attention core: scores and sum over (seq + 1) / 2 earlier tokens.
    """
    weights = active_parameters(c) - c.vocab_size * c.hidden_size
    if c.tie_word_embeddings:
        weights += c.vocab_size * c.hidden_size
    width = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    core = 2.0 * width * (seq + 1) / 2 * c.num_hidden_layers
    return 2.0 * weights + core


def training_flops(c: R1Config, seq: int) -> float:
    """FLOPs per token of forward and backward, the MTP module included.

    Backward costs twice the forward. The MTP module is one more block and one more
    use of the head.
    """
    once = forward_flops(c, seq)
    if c.num_nextn_predict_layers:
        block = layer_parameters(c, c.num_hidden_layers)
        idle = 1 - c.num_experts_per_tok / c.n_routed_experts
        weights = sum(block.values()) - idle * block.get("routed experts", 0)
        weights += 2 * c.hidden_size**2 + c.vocab_size * c.hidden_size
        width = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
        once += 2.0 * weights + 2.0 * width * (seq + 1) / 2
    return 3.0 * once
