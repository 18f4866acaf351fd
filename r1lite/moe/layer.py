"""The MoE layer: routed experts plus the shared one, y = sum w_i E_i(x) + S(x).

V3, equation 12. The dispatcher is handed in: local here, expert-parallel
in a later chapter.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from r1lite.config import R1Config
from r1lite.hot import hot
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.experts import Experts, SwiGLU
from r1lite.moe.gating import Router, Routing

Dispatcher = Callable[[Tensor, Routing, Experts], Tensor]


class MoE(nn.Module):
    """Replaces the dense MLP of a block.

    The n_shared_experts shared experts are one MLP of their summed width: not
    gated, not scaled. With none there is no ``shared_experts`` module.

    Args:
        dispatcher: brings tokens to experts and back; dispatch_local if None.
    """

    def __init__(self, config: R1Config, dispatcher: Dispatcher | None = None) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, width) if width else None
        self.dispatcher: Dispatcher = dispatcher or dispatch_local

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, hidden) -> the same shape."""
        y = self.dispatcher(x.reshape(-1, x.shape[-1]), self.route(x), self.experts)
        y = y.view(x.shape)
        return y if self.shared_experts is None else y + self.shared_experts(x)

    @hot
    def route(self, x: Tensor) -> Routing:
        """Where each token of x goes."""
        routing: Routing = self.gate(x)
        return routing
