"""What the test processes do; run under torchrun by test_expert_parallel.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from r1lite.config import R1Config
from r1lite.model import R1Model
from r1lite.moe.balance import update_bias_
from r1lite.parallel import shard

ROWS, SEQ, STEPS, LR = 4, 12, 50, 0.05


def config() -> R1Config:
    return R1Config.preset("nano").with_(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_nextn_predict_layers=0,
        n_routed_experts=8,
        moe_intermediate_size=16,
        initializer_range=0.1,
    )


def batch(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(64, (ROWS, SEQ + 1), generator=generator)


def train(rank: int, ranks: int, out: Path) -> None:
    """Plain SGD; `out` gets the losses, the last gradients and the weights."""
    torch.manual_seed(0)
    model = R1Model(config()).train()
    group = dist.group.WORLD if ranks > 1 else None
    if group is not None:
        shard.shard_experts_(model, group)
    losses, norms, sent = [], [], 0
    for step in range(STEPS):
        ids = batch(step).chunk(ranks)[rank]
        logits = model(ids[:, :-1]).logits
        total = F.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        loss = total / (ROWS * SEQ)  # this rank's share of the global mean
        loss.backward()
        value = loss.detach().clone()
        if group is not None:
            dist.all_reduce(value, group=group)
            shard.add_gradients_(model, group)
            shard.add_counts_(model, group)
            norm = shard.gradient_norm(model, group)
            sent += sum(m.dispatcher.sent_rows for m in shard.moe_layers(model))
        else:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()
        losses.append(value)
        norms.append(norm)
        load = update_bias_(model, 0.01)
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= LR * p.grad
                    p.grad = None
    state = model.state_dict() if group is None else shard.gather_experts(model, group)
    if rank == 0:
        found = {
            "losses": torch.stack(losses),
            "norms": torch.stack(norms),
            "load": load,
            "sent": sent,
            "state": state,
        }
        torch.save(found, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    train(dist.get_rank(), dist.get_world_size(), Path(sys.argv[1]))
    dist.destroy_process_group()
