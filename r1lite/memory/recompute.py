"""Activation checkpointing: keep less in the forward pass, compute it again.

Per block, as in arXiv 1604.06174; or selectively as in V3 (arXiv 2412.19437,
section 3.2.3), which makes the norms and the MLA up-projections again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from r1lite.attention.cache import LatentCache
from r1lite.errors import R1Error
from r1lite.model import Block
from r1lite.moe.gating import Router

POLICIES = ("none", "block", "selective")
UP_PROJECTIONS = ("self_attn.q_b_proj", "self_attn.kv_b_proj")
# Their results are worth keeping: every one costs rows x columns x depth.
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_grouped_mm",
    "grouped_mm",  # this and `attention`: the kernels' own (r1lite.kernels)
    "attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


class CheckpointedBlock(Block):
    """A block that computes its activations again during backward.

    Parameters and their names are those of `Block`, so copies, saved files
    and optimizers do not notice. Without gradients, or with a cache, it is a
    plain block.
    """

    policy: str

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """As in `Block`; dropout draws the same numbers both times."""
        if cache is not None or not torch.is_grad_enabled():
            return super().forward(x, turn, mask, cache)
        return checkpoint(
            super().forward,
            x,
            turn,
            mask,
            use_reentrant=False,
            preserve_rng_state=True,
            context_fn=lambda: _contexts(self),
        )


def checkpoint_blocks_(model: nn.Module, policy: str) -> nn.Module:
    """Set how the model's blocks keep activations, the MTP block's included.

    Args:
        policy: "none" keeps all of them; "block" keeps a block's input alone;
            "selective" keeps the results of matrix products and of attention,
            and makes again the norms, the MLA up-projections, the rotations
            and the activation functions.

    Returns:
        the same model.

    Raises:
        R1Error: the policy is unknown.
    """
    if policy not in POLICIES:
        raise R1Error(f"checkpoint: {policy!r} is unknown; choose " + _listed(POLICIES))
    for block in model.modules():
        if isinstance(block, Block):
            # Only the class changes: no wrapper, hence no new parameter name.
            block.__class__ = Block if policy == "none" else CheckpointedBlock
            vars(block).pop("policy", None)
            if policy != "none":
                block.policy = policy  # type: ignore[assignment]
    return model


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]


def _contexts(
    block: CheckpointedBlock,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds the forward pass and its repetition."""
    routers = [m for m in block.modules() if isinstance(m, Router)]
    # Picks that somebody has set may be gone when the forward pass is repeated.
    picks = {r: vars(r)["choose"] for r in routers if "choose" in vars(r)}
    quiet = _routers_at_rest(routers, picks)
    if block.policy == "block":
        return nullcontext(), quiet
    inside = _Inside()
    keep, again = create_selective_checkpoint_contexts(inside.policy)
    return _both(inside.watch(block), keep), _both(quiet, inside.watch(block), again)


@contextmanager
def _both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def _routers_at_rest(routers: list[Router], picks: dict[Router, Any]) -> Iterator[None]:
    """A repeated forward picks the same experts; it must not count its tokens again,
    nor replace `last`.
    """
    counting = [r for r in routers if r.training]
    now = {r: vars(r).get("choose") for r in picks}
    for router in counting:
        router.training = False
    for router, choose in picks.items():
        vars(router)["choose"] = choose
    try:
        yield
    finally:
        for router in counting:
            router.training = True
        for router, choose in now.items():
            vars(router).pop("choose")
            if choose is not None:
                vars(router)["choose"] = choose


class _Inside:
    """Knows whether an MLA up-projection is running, and decides what is kept.

    Watching the module, not the shape of a product, also finds a projection
    whose weight was cast or quantised on the way.
    """

    def __init__(self) -> None:
        self.up_projection = False

    def policy(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        name = op._schema.name.partition("::")[2]
        if name in PRODUCTS and not self.up_projection:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    @contextmanager
    def watch(self, block: nn.Module) -> Iterator[None]:
        found = [m for n, m in block.named_modules() if n in UP_PROJECTIONS]
        hooks = [m.register_forward_pre_hook(self._enter) for m in found]
        hooks += [m.register_forward_hook(self._leave) for m in found]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.up_projection = True

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.up_projection = False
