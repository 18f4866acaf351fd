"""What an expert computes: a SwiGLU MLP, nothing more.

Not attention, not a norm: an expert sees one token at a time (V3, section
2.1.2). Routed experts are stacked in 3-D parameters, as in transformers 5, so
that one grouped product serves them all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.config import R1Config
from r1lite.hot import hot


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), for dense layers and the shared expert."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    @hot
    def forward(self, x: Tensor) -> Tensor:
        """x: (..., hidden) -> (..., hidden)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """E stacked SwiGLU experts over rows that are already sorted by expert.

    ``gate_up_proj`` (E, 2 * inner, hidden) holds each expert's gate rows, then
    its up rows; ``down_proj`` is (E, hidden, inner).
    """

    def __init__(self, config: R1Config) -> None:
        super().__init__()
        n, inner = config.n_routed_experts, config.moe_intermediate_size
        hidden = config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(n, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(n, hidden, inner))
        nn.init.normal_(self.gate_up_proj, std=config.initializer_range)
        nn.init.normal_(self.down_proj, std=config.initializer_range)

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Run each expert on its rows.

        Args:
            rows: (N, hidden), the first counts[0] rows for expert 0, and so on.
            counts: (E,) int64, may hold zeros, sums to N.

        Returns:
            (N, hidden) in the same order.
        """
        if self._must_loop(rows):
            return looped(rows, self.gate_up_proj, self.down_proj, counts)
        return grouped(rows, self.gate_up_proj, self.down_proj, counts)

    def _must_loop(self, rows: Tensor) -> bool:
        """grouped_mm wants every row to start on 16 bytes."""
        step = 16 // rows.element_size()
        return bool(self.down_proj.shape[2] % step or rows.shape[1] % step)


@hot
def grouped(rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor) -> Tensor:
    """All experts in two grouped products; nothing waits for the counts.

    Measured on a CPU (tests/benchmarks/results/dispatch.json): level with the
    loop at 4096 tokens, up to 1.6 times as fast below; running every expert on
    every token wins only for fewer than some ten tokens.
    """
    ends = counts.cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    return F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)


@hot
def looped(rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor) -> Tensor:
    """One expert after the other, those without tokens skipped.

    unbind, because indexing would make backward add up E full-sized gradients.
    """
    blocks = rows.split(counts.tolist())
    done = []
    for block, w_in, w_out in zip(blocks, gate_up.unbind(), down.unbind(), strict=True):
        if len(block):
            gate, up = F.linear(block, w_in).chunk(2, -1)
            done.append(F.linear(F.silu(gate) * up, w_out))
    return torch.cat(done) if done else rows
