"""FSDP where it is easily wrong; run under torchrun by test_expert_parallel.py."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from parallel.workers import batch, config, gradients
from torch import Tensor

from r1lite.model import R1Model
from r1lite.parallel.fsdp import fully_shard_
from r1lite.parallel.mesh import finish_backward_, make_mesh


def loss(model: R1Model, ids: Tensor, by_name: bool) -> Tensor:
    """Head and embedding used twice; the trunk called by name or by forward."""
    hidden = model.hidden(ids) if by_name else model(ids).hidden
    ahead = model.mtp_logits(ids, hidden)
    return model.lm_head(hidden).square().mean() + ahead.square().mean()


def compare(tied: bool, by_name: bool) -> None:
    """Two backward passes add up, as in gradient accumulation."""
    mesh = make_mesh(ep=2)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(R1Model(config().with_(tie_word_embeddings=tied)))
    whole, cut = models
    fully_shard_(cut, mesh)
    for step in range(2):
        loss(whole, batch(step), by_name).backward()
        (loss(cut, mesh.rows(batch(step)), by_name) / mesh.size[1]).backward()
    finish_backward_(cut, mesh)
    wanted, found = gradients(whole, None), gradients(cut, mesh)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for tied, by_name in itertools.product((False, True), repeat=2):
        compare(tied, by_name)
    if dist.get_rank() == 0:
        print("4 cases agree")
    dist.destroy_process_group()
