"""Rows that do not feel their company: a batch that changes no bit of a row.

A matrix product picks its inner loops by shape. With one to three rows MKL takes
other ones than with four or more, and the same row comes out with other last bits;
one bit can flip an expert choice or a tie between tokens. From four rows on, the
rows we measured are the same whatever stands beside them. So: no product with
fewer. The server hands `dispatch_steady` to the MoE layers and fills up batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.moe.experts import Experts
from r1lite.moe.gating import Routing

EXPERT_ROWS = 4  # fewest rows in a product
TOKENS = 8  # batches are filled to a multiple: vector loops then have no rest


def dispatch_steady(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """`dispatch_local` with every expert's rows filled up to a multiple of 4.

    Args:
        x: (T, hidden).

    Returns:
        (T, hidden) in x's dtype.
    """
    n_tokens, top_k = routing.experts.shape
    chosen = routing.experts.flatten()
    order = chosen.argsort(stable=True)
    counts = routing.counts
    filled = (counts + (EXPERT_ROWS - 1)) // EXPERT_ROWS * EXPERT_ROWS
    # How far the fill of earlier experts moves an expert's rows.
    shift = (filled - counts).cumsum(0) - (filled - counts)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=x.device) + shift[chosen[order]]
    rows = x.new_zeros(int(filled.sum()), x.shape[-1])
    rows[place] = x.repeat_interleave(top_k, 0)
    picks = experts(rows, filled)[place].view(n_tokens, top_k, x.shape[-1])
    return (picks * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)


def fill_up(count: int) -> int:
    """The number of rows that `count` rows are filled up to."""
    return -(-count // TOKENS) * TOKENS
