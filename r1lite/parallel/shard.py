"""Who holds what: experts are cut up over a group, the rest is repeated.

Every rank reads its own part of the batch. So a gradient is a sum over ranks: the
experts have it already, because all ranks' tokens came to them; everything else
has to be added up. The loss of a rank is its share of the global mean, so that
nothing is divided afterwards.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.moe.balance import routers
from r1lite.moe.experts import Experts
from r1lite.moe.layer import MoE
from r1lite.parallel.dispatch import ExpertParallel


def shard_experts_(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Keep this rank's experts of every MoE layer, and dispatch over the group.

    Call it before the optimizer is built: parameters are replaced.

    Raises:
        R1Error: the ranks do not divide the experts.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    for layer in moe_layers(model):
        total = layer.experts.down_proj.shape[0]
        if total % ranks:
            raise R1Error(
                f"ep: {ranks} ranks do not divide {total} experts; choose a divisor"
            )
        for name, p in list(layer.experts.named_parameters()):
            part = p.detach().chunk(ranks)[rank].clone()
            setattr(layer.experts, name, nn.Parameter(part))
        layer.dispatcher = ExpertParallel(group)


def moe_layers(model: nn.Module) -> list[MoE]:
    """Every MoE layer, the MTP module's last."""
    return [m for m in model.modules() if isinstance(m, MoE)]


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that differ between ranks."""
    experts = [m for m in model.modules() if isinstance(m, Experts)]
    return [p for m in experts for p in m.parameters()]


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that every rank holds alike."""
    own = {id(p) for p in expert_parameters(model)}
    return [p for p in model.parameters() if id(p) not in own]


def gather_experts(model: nn.Module, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The state dict of the whole model, on every rank, for saving."""
    ranks = dist.get_world_size(group)
    state = dict(model.state_dict())
    own = {id(p) for p in expert_parameters(model)}
    for name, p in model.named_parameters():
        if id(p) in own:
            parts = [torch.empty_like(p) for _ in range(ranks)]
            dist.all_gather(parts, p.detach().contiguous(), group=group)
            state[name] = torch.cat(parts)
    return state


def add_gradients_(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Sum the shared parameters' gradients over the ranks, in one message."""
    params = [p for p in shared_parameters(model) if p.requires_grad]
    if not params:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat, group=group)
    for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p).clone()


def add_counts_(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Make every router's load the load of the global batch.

    The balance bias moves by it, and must move alike everywhere: call it before
    `update_bias_`, once a step.
    """
    found = routers(model)
    if found:
        load = torch.stack([r.counts for r in found])
        dist.all_reduce(load, group=group)
        for router, counts in zip(found, load, strict=True):
            router.counts.copy_(counts)


def gradient_norm(model: nn.Module, group: dist.ProcessGroup) -> Tensor:
    """Norm of the whole model's gradient: each expert once, the rest once.

    A norm over what one rank holds would count its experts only, and ranks that
    clip by different norms drift apart.
    """
    experts = _squares(expert_parameters(model))
    dist.all_reduce(experts, group=group)
    return (experts + _squares(shared_parameters(model))).sqrt()


def _squares(params: list[nn.Parameter]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in params:
        if p.grad is not None:
            total = total.to(p.device) + p.grad.double().square().sum()
    return total
