"""The article's expert, head by head, and the leaks that its docstring names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.models import tiny_config
from torch import Tensor

from r1lite.moe.attention_expert import AttentionExpert, AttentionExperts
from r1lite.moe.layer import MoE

SIZES = {"hidden": 32, "heads": 3, "head_dim": 5, "inner": 24}


def made(**changes: int) -> AttentionExpert:
    """With norms that are not the identity, so that leaving one out shows."""
    expert = AttentionExpert(**{**SIZES, **changes})
    for norm in (expert.attention_norm, expert.ffn_norm):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    return expert


def slow_expert(rows: Tensor, e: AttentionExpert) -> Tensor:
    """One row, one head, one other row at a time."""
    head = SIZES["head_dim"]
    width = SIZES["heads"] * head
    q, k, v = (e.qkv_proj(e.attention_norm(rows))).split(width, dim=-1)
    out = []
    for i, row in enumerate(rows):
        seen = range(i + 1) if e.causal else range(len(rows))
        parts = []
        for h in range(0, width, head):
            at = slice(h, h + head)
            scores = torch.stack([q[i, at] @ k[j, at] for j in seen])
            share = (scores / math.sqrt(head)).softmax(0)
            parts.append(sum(p * v[j, at] for p, j in zip(share, seen, strict=True)))
        mixed = row + e.o_proj.weight @ torch.cat(parts)
        out.append(mixed + e.down_proj(F.gelu(e.up_proj(e.ffn_norm(mixed)))))
    return torch.stack(out)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_same_as_the_slow_loop(rows: int, causal: bool) -> None:
    expert, x = made(causal=causal), torch.randn(rows, 32)
    want = slow_expert(x, expert)
    torch.testing.assert_close(expert(x), want, atol=1e-5, rtol=1e-5)


def test_the_article_s_sizes() -> None:
    with torch.device("meta"):
        expert = AttentionExpert()
    matrices = sum(p.numel() for p in expert.parameters() if p.dim() == 2)
    assert matrices == 4 * 1024 * 1024 + 2 * 1024 * 4096 == 3 * 1024 * 4096
    assert expert.heads == 16


def test_alone_a_token_trains_no_query_and_no_key() -> None:
    expert = made()
    expert(torch.randn(1, 32)).square().sum().backward()
    grad = expert.qkv_proj.weight.grad
    assert grad is not None
    query, key, value = grad.split(15)
    assert query.abs().max() < 1e-6 and key.abs().max() < 1e-6
    assert value.abs().max() > 1e-3


def test_the_stack_runs_each_expert_on_its_rows_with_gradients() -> None:
    stack = AttentionExperts(4, **SIZES)
    rows = torch.randn(6, 32)
    found = stack(rows, torch.tensor([2, 0, 3, 1]))
    alone = [
        stack.stack[0](rows[:2]),
        stack.stack[2](rows[2:5]),
        stack.stack[3](rows[5:]),
    ]
    torch.testing.assert_close(found, torch.cat(alone))
    found.sum().backward()
    assert all(p.grad is None for p in stack.stack[1].parameters())
    assert all(p.grad is not None for p in stack.stack[2].parameters())
    none = torch.zeros(4, dtype=torch.int64)
    assert stack(torch.empty(0, 32), none).shape == (0, 32)


def layer_with(causal: bool) -> MoE:
    layer = MoE(tiny_config(n_shared_experts=0)).eval()
    layer.experts = AttentionExperts(8, **SIZES, causal=causal)  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize("causal", [False, True])
def test_inside_the_layer_other_sequences_and_later_tokens_leak(causal: bool) -> None:
    layer, x = layer_with(causal), torch.randn(3, 10, 32)
    before = layer(x)
    changed = x.clone()
    changed[1, 5] = torch.randn(32)
    moved = (layer(changed) - before).abs().amax(-1) > 1e-6
    assert moved[2].any()  # another sequence, later in the batch
    assert moved[0].any() == (not causal)  # one earlier in the batch
    assert moved[1, :5].any() == (not causal)  # the own past
