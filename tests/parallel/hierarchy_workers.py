"""Dispatch by nodes on 4 ranks as 2 nodes of 2; run under torchrun."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from parallel.counting import Sent, total
from parallel.edge_workers import EXPERTS, HIDDEN, layer, routing
from parallel.workers import SEQ, backward, config, gradients
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.gating import Routing
from r1lite.parallel import shard
from r1lite.parallel.dispatch import ExpertParallel
from r1lite.parallel.hierarchy import (
    NodeLimited,
    Nodes,
    dispatch_by_node_,
    make_nodes,
    nodes_of_a_token,
)
from r1lite.parallel.mesh import make_mesh
from r1lite.planner.traffic import counted_rows

NODE = 2
ALL = list(range(EXPERTS))
# Tokens of each rank, and the experts that may be chosen; a rank holds two.
CASES: dict[str, tuple[list[int], list[int]]] = {
    "even": ([6, 6, 6, 6], ALL),
    "uneven": ([9, 2, 1, 5], ALL),
    "a rank without tokens": ([0, 5, 3, 2], ALL),
    "a node without tokens": ([0, 0, 5, 2], ALL),
    "nobody has a token": ([0, 0, 0, 0], ALL),
    "all experts in one node": ([4, 3, 2, 6], [0, 1, 3]),
    "all experts on one rank": ([4, 3, 2, 6], [4, 5]),
    "experts without tokens": ([4, 3, 5, 0], [2, 5]),
}


def run(
    dispatcher: ExpertParallel | NodeLimited,
    node_size: int,
    tokens: list[int],
    allowed: list[int],
) -> tuple[list[Tensor], Sent]:
    """Output and gradients of this rank's rows, gates and experts; what was sent."""
    rank, spread = dist.get_rank(), layer()
    shard.shard_experts_(spread, dist.group.WORLD)
    here, route = inputs(tokens, allowed)[rank]
    with Sent(HIDDEN, node_size) as sent:
        found = dispatcher(here, route, spread.experts)
        found.square().sum().backward()
    wanted = (here, route.weights, *spread.experts.parameters())
    return [found.detach(), *(t.grad for t in wanted)], sent


def alone(tokens: list[int], allowed: list[int]) -> list[Tensor]:
    """What one process with all rows finds for this rank."""
    rank, ranks, whole = dist.get_rank(), dist.get_world_size(), layer()
    given = inputs(tokens, allowed)
    found = [dispatch_local(x, route, whole.experts) for x, route in given]
    sum(y.square().sum() for y in found).backward()
    experts = [p.grad.chunk(ranks)[rank] for p in whole.experts.parameters()]
    here, route = given[rank]
    return [found[rank].detach(), here.grad, route.weights.grad, *experts]


def inputs(tokens: list[int], allowed: list[int]) -> list[tuple[Tensor, Routing]]:
    """Every rank's rows and routing."""
    torch.manual_seed(1)
    rows = [torch.randn(n, HIDDEN, requires_grad=True) for n in tokens]
    routes = [routing(n, allowed, seed) for seed, n in enumerate(tokens)]
    for route in routes:
        route.weights.requires_grad_()
    return list(zip(rows, routes, strict=True))


def compare(nodes: Nodes, tokens: list[int], allowed: list[int]) -> tuple[int, int]:
    """Both dispatchers equal one process, and send what the planner counts.

    Returns:
        rows between nodes, one way, over all ranks: flat, by node.
    """
    rank, node_size = dist.get_rank(), nodes.shape[1]
    flat, by_node = ExpertParallel(dist.group.WORLD), NodeLimited(nodes)
    wanted = alone(tokens, allowed)
    picks = [route.experts for _, route in inputs(tokens, allowed)]
    away = []
    for dispatcher in (flat, by_node):
        found, sent = run(dispatcher, node_size, tokens, allowed)
        for mine, one in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, one, atol=1e-4, rtol=1e-4)
        planned = counted_rows(picks, EXPERTS, node_size, dispatcher is by_node)
        assert dispatcher.sent_rows == sum(planned[rank]), name
        across, inside = total(sent.rows_across, sent.rows_inside)
        # Out and back, forward and backward.
        assert across == 4 * sum(rows.across for rows in planned)
        assert inside == 4 * sum(rows.inside for rows in planned)
        away.append(across // 4)
    assert (by_node.across_rows, by_node.inside_rows) == planned[rank]
    lots = (picks[rank] // (EXPERTS // nodes.shape[0])).tolist()
    once = sum(len(set(lot) - {rank // node_size}) for lot in lots)
    assert by_node.across_rows == once  # however many experts wait there
    return away[0], away[1]


def trains_alike(nodes: Nodes) -> None:
    """The whole model's loss and gradients, flat and by node, checkpointed too."""
    mesh, found = make_mesh(ep=4), []
    torch.manual_seed(0)
    grouped = config().with_(n_group=2, topk_group=1)
    whole = R1Model(grouped).train()
    for by_node, policy in (
        (False, "none"),
        (True, "none"),
        (True, "block"),
        (True, "selective"),
    ):
        model = checkpoint_blocks_(copy.deepcopy(whole), policy)
        shard.shard_experts_(model, mesh.ep)
        if by_node:
            dispatch_by_node_(model, nodes)
        loss, norm = backward(model, 0, mesh)
        found.append((loss, norm, gradients(model, mesh)))
        for moe in shard.moe_layers(model) if by_node else []:
            assert isinstance(moe.dispatcher, NodeLimited)
            assert nodes_of_a_token(moe.gate, 2) == 1
            assert moe.dispatcher.across_rows <= SEQ  # this rank's tokens
    loss, norm, flat = found[0]
    for loss2, norm2, limited in found[1:]:
        torch.testing.assert_close(loss2, loss, atol=1e-6, rtol=0)
        torch.testing.assert_close(norm2, norm, atol=1e-5, rtol=1e-5)
        for name, value in flat.items():
            torch.testing.assert_close(limited[name], value, atol=1e-6, rtol=1e-4)


def refuses(nodes: Nodes) -> None:
    """Before anything is sent, so that no rank waits for another."""
    for call, words in (
        (lambda: make_nodes(dist.group.WORLD, 3), "3 does not divide 4 ranks"),
        (lambda: make_nodes(dist.group.WORLD, 0), "0 does not divide 4 ranks"),
        (
            lambda: NodeLimited(nodes)(
                torch.randn(2, HIDDEN), routing(2, [0, 1], 0), layer().experts
            ),
            "call shard_experts_ on the model first",
        ),
    ):
        try:
            call()
        except R1Error as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    nodes = make_nodes(dist.group.WORLD, NODE)
    refuses(nodes)
    for name, case in CASES.items():
        flat, by_node = compare(nodes, *case)
        if dist.get_rank() == 0:
            print(f"{name}: {flat} rows flat, {by_node} by node", flush=True)
    trains_alike(nodes)
    for size in (1, 4):  # every rank a node; one node
        compare(make_nodes(dist.group.WORLD, size), *CASES["uneven"])
    # Of two expert-parallel groups side by side each is cut by itself.
    pair = make_nodes(make_mesh(ep=2).ep, 1)
    first = dist.get_rank() // 2 * 2
    assert dist.get_process_group_ranks(pair.across) == [first, first + 1]
    dist.destroy_process_group()
