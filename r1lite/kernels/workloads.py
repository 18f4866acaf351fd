"""Every kernel's work, from a model's configuration and a number of tokens.

The roofline reads shapes only, on torch's meta device; the benchmark computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import unwrap

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.attention.rope import rotate
from r1lite.config import R1Config
from r1lite.kernels import rope  # noqa: F401  # defines its op
from r1lite.kernels.attention import attention_reference
from r1lite.kernels.logprobs import token_logprobs_reference
from r1lite.kernels.mla_decode import mla_decode_reference
from r1lite.kernels.norm import rms_norm_reference
from r1lite.kernels.swiglu import swiglu_reference
from r1lite.kernels.work import Sizes, Workload, ops
from r1lite.kernels.work_experts import _grouped, _moves, _router
from r1lite.kernels.work_quantised import _fp8, _integers

SEQUENCES = 32  # that decode together, each with as many tokens as the others train on
PAGE = 64  # tokens of a page of the cache


def workloads(
    config: R1Config, tokens: int, device: str, dtype: torch.dtype
) -> Iterator[Workload]:
    """Every kernel at the sizes of one layer of `config`; made one by one.

    Args:
        tokens: that train together, or lie in the cache of a sequence that decodes.
        dtype: of activations and weights.
    """
    s = Sizes(config, tokens, device, dtype)
    makers = _rows, _attention, _decode, _router, _moves, _grouped, _head, _fp8
    for make in (*makers, _integers):
        yield from make(s)


def _rows(s: Sizes) -> Iterator[Workload]:
    n, inner = s.config.hidden_size, s.config.moe_intermediate_size
    x, w, dy = s.normal(s.tokens, n), s.normal(n), s.normal(s.tokens, n)
    given, numbers = (x, w, 1e-6), float(x.numel())
    rival = "F.rms_norm", lambda: F.rms_norm(x, (n,), w, 1e-6)
    yield Workload(
        "rms_norm", "rms_norm", given, rms_norm_reference, given, 4 * numbers,
        rival=rival, compared=lambda found: found[:1],
    )  # fmt: skip
    yield Workload(
        "rms_norm, backward", "rms_norm_backward",
        (dy, x, w, ops.rms_norm(*given)[1]), rms_norm_reference, given, 11 * numbers,
        dy=dy,
    )  # fmt: skip
    both, dy = [s.normal(s.tokens, inner) for _ in range(2)], s.normal(s.tokens, inner)
    numbers, halves = float(dy.numel()), tuple(both)
    yield Workload("swiglu", "swiglu", halves, swiglu_reference, halves, 5 * numbers)
    yield Workload(
        "swiglu, backward", "swiglu_backward", (dy, *both), swiglu_reference, halves,
        11 * numbers, dy=dy,
    )  # fmt: skip
    heads, width = s.config.num_attention_heads, s.config.qk_rope_head_dim
    angle = s.normal(s.tokens, width // 2, dtype=torch.float32)
    q, cos, sin = s.normal(s.tokens, heads, width), angle.cos(), angle.sin()
    wide = q, cos.unsqueeze(1), sin.unsqueeze(1), True
    plain = unwrap(rotate)  # marked hot: on a GPU it would be the kernel itself
    turned = q, cos, sin, True, False
    yield Workload("rope", "rope", turned, plain, wide, 3.0 * q.numel())


def _attention(s: Sizes) -> Iterator[Workload]:
    """One document of all tokens, every head with keys of its own as in MLA."""
    heads, width = s.config.num_attention_heads, s.config.qk_head_dim
    shapes = (width, width, s.config.v_head_dim)
    q, k, v = (s.normal(s.tokens, heads, n) for n in shapes)
    starts = torch.tensor([0, s.tokens], dtype=torch.int32, device=s.device)
    scale, longest = width**-0.5, s.tokens
    given, plain = (q, k, v, starts, longest, scale, True), (q, k, v, starts, scale)
    pairs = heads * s.tokens * (s.tokens + 1) / 2

    def library() -> Tensor:
        one, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            one, keys, values, is_causal=True, scale=scale
        )
        return out[0].transpose(0, 1)

    yield Workload(
        "attention", "attention", given, attention_reference, plain,
        2 * pairs * (width + v.shape[2]), "matrix", rival=("SDPA", library),
        compared=lambda found: found[:1],
    )  # fmt: skip
    dy = s.normal(s.tokens, heads, v.shape[2])
    back = dy, q, k, v, *ops.attention(*given), *given[3:]
    yield Workload(
        "attention, backward", "attention_backward", back, attention_reference, plain,
        2 * pairs * (3 * width + 2 * v.shape[2]), "matrix", dy, (0, 1, 2),
    )  # fmt: skip


def _decode(s: Sizes) -> Iterator[Workload]:
    c, heads, length = s.config, s.config.num_attention_heads, s.tokens
    batch, each = min(SEQUENCES, s.tokens), -(-length // PAGE)
    query = s.normal(batch, heads, c.cache_width)
    pages = s.normal(batch * each, PAGE, c.cache_width)
    tables = torch.randperm(len(pages), device=s.device).to(torch.int32)
    lengths = torch.full((batch,), length, dtype=torch.int32, device=s.device)
    cache = query, pages, tables.view(batch, each), lengths
    given = *cache, c.kv_lora_rank, c.qk_head_dim**-0.5
    flops = 2.0 * batch * heads * length * (c.cache_width + c.kv_lora_rank)
    plain = mla_decode_reference, given
    yield Workload("mla_decode", "mla_decode", (*given, 8), *plain, flops, "matrix")


def _head(s: Sizes) -> Iterator[Workload]:
    n, vocab = s.config.hidden_size, s.config.vocab_size
    given = s.normal(s.tokens, n), s.matrix(vocab, n), s.below(vocab, s.tokens), 1.0
    plain, flops = (token_logprobs_reference, given), 2.0 * s.tokens * vocab * n
    op = "token_logprobs"
    yield Workload(
        op, op, given, *plain, flops, "matrix", compared=lambda found: found[:1]
    )
    dy = s.normal(s.tokens, dtype=torch.float32)
    hidden, weight, targets, temperature = given
    lse = ops.token_logprobs(*given)[1]
    back = dy, hidden, weight, targets, lse, temperature
    name, op = "token_logprobs, backward", "token_logprobs_backward"
    yield Workload(name, op, back, *plain, 2 * flops, "matrix", dy)
