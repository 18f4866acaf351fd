"""FSDP2 beside expert parallelism: nothing that could be cut stays whole.

Experts lie on their ranks for good, their tokens travel. Everything else is cut
over *all* ranks, gathered block by block when it is needed and thrown away after
(ZeRO-3, arXiv 1910.02054): for V3 that is the 2.6 % of the weights that every
rank would otherwise repeat, with their gradients and optimizer states.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from r1lite.model import R1Model
from r1lite.parallel.mesh import Mesh
from r1lite.parallel.shard import expert_parameters, shard_experts_


def fully_shard_(model: R1Model, mesh: Mesh) -> None:
    """Cut the experts over `mesh.ep` and every other parameter over all ranks.

    Call it before the optimizer is built: parameters become DTensors, of which a
    rank stores and updates its own rows. The rest of a step stays as without it
    (`finish_backward_`).

    Raises:
        R1Error: the ranks do not divide the experts.
    """
    shard_experts_(model, mesh.ep)
    experts = set(expert_parameters(model))
    ranks = mesh.world_mesh()
    for unit in _units(model):
        _cut_(unit, ranks, experts)
    _cut_([model], ranks, experts)
    # The trunk and the MTP module are called by name, too, not by forward only.
    register_fsdp_forward_method(model, "hidden")
    register_fsdp_forward_method(model, "mtp_hidden")


def _units(model: R1Model) -> list[list[nn.Module]]:
    """What is gathered together; a tied embedding and head are one tensor."""
    ends: list[list[nn.Module]] = [[model.embed_tokens], [model.lm_head]]
    if model.config.tie_word_embeddings:
        ends = [[model.embed_tokens, model.lm_head]]
    rest: list[nn.Module] = [*model.layers, model.norm]
    if model.mtp is not None:
        rest.append(model.mtp)
    known = {*rest, model.layers, *(m for unit in ends for m in unit)}
    rest += [m for m in model.children() if m not in known]  # a second head
    return ends + [[module] for module in rest]


def _cut_(unit: list[nn.Module], ranks: DeviceMesh, ignored: set[nn.Parameter]) -> None:
    sharded = fully_shard(
        unit, mesh=ranks, ignored_params=ignored, reshard_after_forward=True
    )
    # Losses are shares of a global mean, so gradients are summed: FSDP's default,
    # the mean over ranks, would make them too small by the number of ranks. It
    # would also need an averaging reduction, which gloo does not have.
    sharded[0].set_gradient_divide_factor(1.0)
    sharded[0].set_force_sum_reduction_for_comms(True)
