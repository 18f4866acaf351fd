"""The dispatcher alone, with awkward batches; run under torchrun."""

from __future__ import annotations

import torch
import torch.distributed as dist

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.gating import Routing
from r1lite.moe.layer import MoE
from r1lite.parallel import shard

EXPERTS, TOP_K, HIDDEN = 8, 2, 16
# Tokens of each rank, and the experts that may be chosen.
CASES: dict[str, tuple[list[int], list[int]]] = {
    "even": ([6, 6], list(range(EXPERTS))),
    "uneven": ([9, 2], list(range(EXPERTS))),
    "a rank without tokens": ([0, 5], list(range(EXPERTS))),
    "nobody has a token": ([0, 0], list(range(EXPERTS))),
    "all experts on one rank": ([4, 3], [0, 1, 3]),
    "experts without tokens": ([4, 3], [2, 5]),
}


def layer() -> MoE:
    torch.manual_seed(0)
    config = R1Config.preset("nano").with_(
        hidden_size=HIDDEN,
        n_routed_experts=EXPERTS,
        moe_intermediate_size=8,
        initializer_range=0.3,
    )
    return MoE(config)


def routing(tokens: int, allowed: list[int], seed: int) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, len(allowed), generator=generator).argsort(-1)
    experts = torch.tensor(allowed)[order[:, :TOP_K]]
    weights = torch.rand(tokens, TOP_K, generator=generator)
    counts = torch.bincount(experts.flatten(), minlength=EXPERTS)
    return Routing(weights, experts, torch.zeros(tokens, EXPERTS), counts)


def compare(tokens: list[int], allowed: list[int], rank: int) -> None:
    """This rank's rows and gradients equal those of one process with all rows."""
    whole, spread = layer(), layer()
    shard.shard_experts_(spread, dist.group.WORLD)
    torch.manual_seed(1)
    inputs = [torch.randn(n, HIDDEN) for n in tokens]
    routes = [routing(n, allowed, seed) for seed, n in enumerate(tokens)]
    here = inputs[rank].clone().requires_grad_()
    there = [x.clone().requires_grad_() for x in inputs]
    found = spread.dispatcher(here, routes[rank], spread.experts)
    wanted = [
        dispatch_local(x, r, whole.experts) for x, r in zip(there, routes, strict=True)
    ]
    torch.testing.assert_close(found, wanted[rank], atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    sum(w.square().sum() for w in wanted).backward()
    torch.testing.assert_close(here.grad, there[rank].grad, atol=1e-4, rtol=1e-4)
    pairs = zip(whole.experts.parameters(), spread.experts.parameters(), strict=True)
    for mine, part in pairs:
        wanted_grad = mine.grad.chunk(dist.get_world_size())[rank]
        torch.testing.assert_close(part.grad, wanted_grad, atol=1e-4, rtol=1e-4)


def refuses_unsharded_experts() -> None:
    """Before anything is sent, so that no rank waits for another."""
    spread = layer()
    shard.shard_experts_(spread, dist.group.WORLD)
    try:
        spread.dispatcher(
            torch.randn(2, HIDDEN), routing(2, [0, 1], 0), layer().experts
        )
    except R1Error as error:
        assert "call shard_experts_ on the model first" in str(error)
    else:
        raise AssertionError("unsharded experts were accepted")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for tokens, allowed in CASES.values():
        compare(tokens, allowed, dist.get_rank())
    refuses_unsharded_experts()
    if dist.get_rank() == 0:
        print(len(CASES), "cases agree")
    dist.destroy_process_group()
