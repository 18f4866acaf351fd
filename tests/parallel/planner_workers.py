"""One training step of nano, weighed and counted; run under torchrun.

Words: a file for the findings (JSON), then layouts: ep2, ep2-fsdp, ep4-nodes2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parallel.counting import Sent, total
from torch import Tensor
from torch.distributed.tensor import DTensor

from r1lite.config import R1Config
from r1lite.model import R1Model
from r1lite.mtp import mtp_loss
from r1lite.parallel.dispatch import ExpertParallel
from r1lite.parallel.fsdp import fully_shard_
from r1lite.parallel.hierarchy import NodeLimited, dispatch_by_node_, make_nodes
from r1lite.parallel.mesh import Mesh, finish_backward_, make_mesh
from r1lite.parallel.shard import moe_layers, shard_experts_
from r1lite.planner.traffic import counted_rows

ROWS, SEQ, NODE = 4, 64, 2
CONFIG = R1Config.preset("nano").with_(initializer_range=0.1)


def held(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind them, each once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in local}
    return sum(storage.nbytes() for storage in found.values())


def laid_out(layout: str) -> tuple[R1Model, Mesh]:
    """The model of a layout, sharded."""
    ep, *more = layout.removeprefix("ep").split("-")
    mesh = make_mesh(ep=int(ep))
    torch.manual_seed(0)
    model = R1Model(CONFIG).train()
    if "fsdp" in more:
        fully_shard_(model, mesh)
    else:
        shard_experts_(model, mesh.ep)
    if "nodes2" in more:
        dispatch_by_node_(model, make_nodes(mesh.ep, NODE))
    return model, mesh


def step(model: R1Model, mesh: Mesh) -> list[Tensor]:
    """Forward and backward of this rank's rows; the picks of each MoE layer."""
    picks: list[Tensor] = []
    for layer in moe_layers(model):
        layer.gate.register_forward_hook(lambda *a: picks.append(a[2].experts))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(CONFIG.vocab_size, (ROWS, SEQ + 1), generator=generator)
    ids = mesh.rows(batch)
    output = model(ids[:, :-1])
    loss = F.cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten())
    loss = loss + 0.3 * mtp_loss(model, ids[:, :-1], output.hidden)
    (loss * len(ids) / ROWS).backward()
    return picks


def planned(picks: list[Tensor], mesh: Mesh, by_node: bool) -> list[list[int]]:
    """Each layer's rows (across, inside) by the planner's count, all ranks'."""
    every: list[list[Tensor]] = [[] for _ in range(mesh.size[1])]
    dist.all_gather_object(every, picks, group=mesh.ep)
    rows = [
        counted_rows(layer, CONFIG.n_routed_experts, NODE, by_node)
        for layer in zip(*every, strict=True)
    ]
    here = dist.get_rank(mesh.ep)
    return [total(*(int(n) for n in layer[here])) for layer in rows]


def counted(dispatchers: list[ExpertParallel | NodeLimited]) -> list[int]:
    """Each layer's rows to others as its dispatcher counts them, all ranks'."""
    return [total(d.sent_rows)[0] for d in dispatchers]


def measure(layout: str) -> dict[str, Any]:
    """What this rank holds after a step, and what all ranks sent."""
    model, mesh = laid_out(layout)
    with Sent(CONFIG.hidden_size, NODE) as sent:
        picks = step(model, mesh)
    finish_backward_(model, mesh)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params)
    optimizer.step()
    state = list(optimizer.state.values())
    size = {
        "weights": held([p.detach() for p in params]),
        "gradients": held([p.grad for p in params if p.grad is not None]),
        "moments": held([s[k] for s in state for k in ("exp_avg", "exp_avg_sq")]),
        "step counts": sum(s["step"].nbytes for s in state),
        "buffers": held(list(model.buffers())),
    }
    every: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, size)
    dispatchers = [layer.dispatcher for layer in moe_layers(model)]
    names = ("rows_across", "rows_inside", "other_bytes")
    all_sent = total(*(getattr(sent, n) for n in names))
    return {
        "bytes": every,
        "sent": dict(zip(names, all_sent, strict=True)),
        "counted": counted(dispatchers),
        "planned": planned(picks, mesh, "nodes2" in layout),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {layout: measure(layout) for layout in sys.argv[2:]}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()
