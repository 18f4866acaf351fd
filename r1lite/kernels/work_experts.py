"""The work of an MoE layer's kernels: routing, moving rows, grouped products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.kernels.grouped import grouped_reference
from r1lite.kernels.permute import permute_reference, unpermute_reference
from r1lite.kernels.router import route_reference
from r1lite.kernels.work import Sizes, Workload

LOCAL = 8  # experts of one GPU: 32 of them share V3's 256 (section 3.4.1)


def _router(s: Sizes) -> Iterator[Workload]:
    c, every = s.config, s.config.n_routed_experts
    # As many different logits as there are experts: a tie could go either way.
    steps = torch.rand(s.tokens, every, device=s.device).argsort(-1) / every
    logits, bias = 4 * steps - 2, torch.zeros(every, device=s.device)
    top_k, scaling = c.num_experts_per_tok, c.routed_scaling_factor
    given = logits, bias, top_k, c.n_group, c.topk_group, False, True, scaling
    plain = route_reference, given

    def compared(found: Any) -> tuple[Tensor, ...]:
        weights, experts, _, counts = found
        return weights.sort(-1).values, experts.sort(-1).values, counts

    flops = (4.0 + top_k) * logits.numel()
    yield Workload("router", "route", given, *plain, flops, compared=compared)


def _moves(s: Sizes) -> Iterator[Workload]:
    n, top_k = s.config.hidden_size, s.config.num_experts_per_tok
    order = torch.rand(s.tokens * top_k, device=s.device).argsort()
    place, x = order.argsort(), s.normal(s.tokens, n)
    given, plain = (x, order, place, top_k), (x, order, top_k)
    yield Workload("permute", "permute", given, permute_reference, plain, 0.0)
    weights = torch.rand(s.tokens, top_k, device=s.device)
    back = s.normal(len(order), n), place, weights
    flops, dy = float(back[0].numel()), s.normal(s.tokens, n)
    yield Workload("unpermute", "unpermute", back, unpermute_reference, back, 2 * flops)
    yield Workload(
        "unpermute, backward", "unpermute_backward", (dy, *back), unpermute_reference,
        back, 3 * flops, dy=dy, leaves=(0, 2),
    )  # fmt: skip


def _grouped(s: Sizes) -> Iterator[Workload]:
    """The first of an expert's products; as many rows an expert as there come by."""
    n, inner = s.config.hidden_size, s.config.moe_intermediate_size
    local = min(LOCAL, s.config.n_routed_experts)
    rows = s.tokens * s.config.num_experts_per_tok // local * local
    counts = torch.full((local,), rows // local, device=s.device)
    x, weight = s.normal(rows, n), s.normal(local, 2 * inner, n) / n**0.5
    given, flops = (x, weight, counts), 2.0 * rows * 2 * inner * n
    plain = grouped_reference, given
    ends = counts.cumsum(0).to(torch.int32)
    rival = "grouped_mm", lambda: F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    name = "grouped product"
    yield Workload(name, "grouped_mm", given, *plain, flops, "matrix", rival=rival)
    dy, name = s.normal(rows, 2 * inner), "grouped product, backward"
    back, op = (dy, *given), "grouped_mm_backward"
    yield Workload(name, op, back, *plain, 2 * flops, "matrix", dy)
