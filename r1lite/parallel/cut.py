"""Which layers a rank holds when the layers are cut into pipeline stages.

Stages are runs of neighbouring layers; the embedding stands before the first, the
last norm, the head and the MTP module after the last one. In a line ("1f1b") rank
r holds stage r. In a V ("dualpipev") there are twice as many stages, and rank r
holds stage r on the way down and stage 2 pp - 1 - r on the way back.

The MTP module reads the embedding, too (and a tied head is the embedding). In a
line both ends then hold one, and its gradient is summed between them. In a V the
first and the last stage lie on one rank, which holds it once: V3 places its
embedding and its MTP module so (arXiv 2412.19437, section 3.2.3).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1lite.errors import R1Error
from r1lite.model import R1Model

Schedule = Literal["1f1b", "dualpipev"]
EMBEDDING = "embed_tokens.weight"


def stages_of(schedule: Schedule, pp: int, rank: int) -> list[int]:
    """The stages, of pp or 2 pp, that rank `rank` of `pp` holds, in order.

    Raises:
        R1Error: there is no such schedule.
    """
    if schedule not in get_args(Schedule):
        built = " or ".join(get_args(Schedule))
        raise R1Error(f"schedule: {schedule!r} is not built; use {built}")
    return [rank] if schedule == "1f1b" else [rank, 2 * pp - 1 - rank]


def layers_of(n_layers: int, stages: int, index: int) -> range:
    """The layers of stage `index`: `stages` runs that differ by one at most.

    Raises:
        R1Error: there are more stages than layers.
    """
    if stages > n_layers:
        raise R1Error(
            f"pp: {stages} stages are more than the {n_layers} layers; choose fewer "
            "stages (dualpipev makes two a rank) or a deeper model"
        )
    return range(n_layers * index // stages, n_layers * (index + 1) // stages)


def cut_(model: R1Model, schedule: Schedule, pp: int, rank: int) -> None:
    """Keep what rank `rank` of `pp` holds of a whole model.

    What stays keeps its name. Call it before the optimizer is built.

    Raises:
        R1Error: there are more stages than layers, or no such schedule.
    """
    held = stages_of(schedule, pp, rank)
    stages, n_layers = pp * len(held), len(model.layers)
    mine = {i for stage in held for i in layers_of(n_layers, stages, stage)}
    for i in set(range(n_layers)) - mine:
        model.layers[i] = nn.Module()  # holds nothing, and keeps the others' numbers
    first, last = 0 in held, stages - 1 in held
    config = model.config
    reused = bool(config.num_nextn_predict_layers or config.tie_word_embeddings)
    if not (first or (last and reused)):
        del model.embed_tokens
    if not last:
        model.mtp = None
        del model.norm, model.lm_head
    if reused and first != last:
        vars(model)["twins"] = (EMBEDDING,)


def twins(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the ranks of the first and of the last stage both hold."""
    names = vars(model).get("twins", ())
    return [p for name, p in model.named_parameters() if name in names]


def add_twins_(model: nn.Module, ends: dist.ProcessGroup) -> None:
    """Sum the gradients of what both ends of a line hold, so that both stay alike."""
    for p in twins(model):
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        dist.all_reduce(grad, group=ends)
        p.grad = grad


def gather_stages(
    state: dict[str, Tensor], group: dist.ProcessGroup
) -> dict[str, Tensor]:
    """The tensors of all stages by name, on every rank.

    Args:
        group: the ranks that hold all layers together.
    """
    described = {k: (v.shape, v.dtype) for k, v in state.items()}
    # Pickled, but only between the processes of this very run.
    every: list[dict[str, tuple[torch.Size, torch.dtype]]]
    every = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(every, described, group=group)
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    whole: dict[str, Tensor] = {}
    for owner, names in enumerate(every):
        for name, (shape, dtype) in names.items():
            if name in whole:
                continue
            mine = owner == dist.get_rank(group)
            value = torch.empty(shape, dtype=dtype, device=device)
            whole[name] = state[name].detach().contiguous() if mine else value
            dist.broadcast(whole[name], group=group, group_src=owner)
    return whole
