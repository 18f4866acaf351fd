"""Who holds what: experts are cut up over a group, the rest is repeated.

Every rank reads its own part of the batch. So a gradient is a sum over ranks: an
expert has that of its group already, because the group's tokens came to it, and
lacks only that of its copies in other groups; everything else has to be added up
over all ranks. The loss of a rank is its share of the global mean, so that
nothing is divided afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from r1lite.errors import R1Error
from r1lite.moe.balance import routers
from r1lite.moe.experts import Experts
from r1lite.moe.layer import MoE
from r1lite.parallel.cut import gather_stages
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


def gather_experts(
    model: nn.Module,
    group: dist.ProcessGroup,
    stages: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """The state dict of the whole model, on every rank, for saving.

    Args:
        group: the ranks that hold all experts together.
        stages: the ranks that hold all layers together, where these are cut.
    """
    state = dict(model.state_dict())
    own = {id(p) for p in expert_parameters(model)}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in own:
            state[name] = gather_parts(p.detach(), group)
        elif isinstance(p, DTensor):  # cut by FSDP
            state[name] = p.full_tensor().detach()
    if stages is not None and dist.get_world_size(stages) > 1:
        state = gather_stages(state, stages)
    return state


def gather_parts(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's (n, ...) one after the other, (ranks * n, ...), on every rank."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts)


def add_gradients_(
    model: nn.Module,
    group: dist.ProcessGroup,
    replicas: dist.ProcessGroup | None = None,
) -> None:
    """Sum the gradients over the ranks that each speak for their own tokens only.

    Args:
        group: every rank. The shared parameters are summed over it.
        replicas: the ranks that hold the same experts as this one, where experts
            are repeated. An expert's gradient has the tokens of its own
            expert-parallel group already; it is summed over `replicas` only.
    """
    _sum_(shared_parameters(model), group)
    if replicas is not None and dist.get_world_size(replicas) > 1:
        _sum_(expert_parameters(model), replicas)


def _sum_(params: list[nn.Parameter], group: dist.ProcessGroup) -> None:
    """All-reduce the gradients in one message; a missing one counts as zero.

    FSDP has summed those of its own parameters already, in the backward pass.
    """
    params = [p for p in params if p.requires_grad and not isinstance(p, DTensor)]
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

    Args:
        group: every rank.
    """
    found = routers(model)
    if found:
        load = torch.stack([r.counts for r in found])
        dist.all_reduce(load, group=group)
        for router, counts in zip(found, load, strict=True):
            router.counts.copy_(counts)


def gradient_norm(
    model: nn.Module,
    group: dist.ProcessGroup,
    repeated: Sequence[nn.Parameter] = (),
) -> Tensor:
    """Norm of the whole model's gradient: each expert once, the rest once.

    A norm over what one rank holds would count its experts only, and ranks that
    clip by different norms drift apart.

    Args:
        group: the ranks that hold all experts together. Copies of an expert in
            other groups are not counted again.
        repeated: parameters that another pipeline stage counts.
    """
    device = next(model.parameters()).device
    experts = _squares(expert_parameters(model), device)
    dist.all_reduce(experts, group=group)
    elsewhere = {id(p) for p in repeated}
    shared = [p for p in shared_parameters(model) if id(p) not in elsewhere]
    return (experts + _squares(shared, device)).sqrt()


def _squares(params: list[nn.Parameter], device: torch.device) -> Tensor:
    """Sum of the squared gradients: () float64, alike on the ranks that share them."""
    whole = torch.zeros((), dtype=torch.float64, device=device)
    cut, over = torch.zeros_like(whole), None
    for p in params:
        if isinstance(p, DTensor):
            over = p.device_mesh.get_group()
        if isinstance(p.grad, DTensor):
            cut += p.grad.to_local().double().square().sum()
        elif p.grad is not None:
            whole += p.grad.double().square().sum()
    if over is not None:
        dist.all_reduce(cut, group=over)
    return whole + cut
