"""Dispatch by nodes: same results as flat, fewer rows between nodes."""

from __future__ import annotations

import pytest
import torch
from parallel.launch import torchrun

from r1lite.config import R1Config
from r1lite.moe.gating import Router
from r1lite.parallel.hierarchy import nodes_of_a_token


def test_two_nodes_of_two_ranks() -> None:
    """Awkward batches, gradients, a whole model; every row counted at torch's door."""
    lines = torchrun("hierarchy_workers.py", 4).splitlines()
    assert lines == [
        "even: 22 rows flat, 17 by node",
        "uneven: 14 rows flat, 11 by node",
        "a rank without tokens: 10 rows flat, 8 by node",
        "a node without tokens: 6 rows flat, 5 by node",
        "nobody has a token: 0 rows flat, 0 by node",
        # Both experts of a token wait in one node: half the rows cross.
        "all experts in one node: 16 rows flat, 8 by node",
        "all experts on one rank: 14 rows flat, 7 by node",
        # Experts 2 and 5 lie in different nodes: nothing to save.
        "experts without tokens: 12 rows flat, 12 by node",
    ]


def router(**changes: object) -> Router:
    config = R1Config.preset("nano").with_(hidden_size=16, **changes)
    return Router(config)


@pytest.mark.parametrize(
    ("groups", "kept", "nodes", "most"),
    [
        (1, 1, 8, 4),  # no groups: each of 4 picks in a node of its own
        (8, 2, 8, 2),  # V3's way: a group is a node
        (4, 2, 8, 4),  # a group lies on two nodes
        (8, 2, 4, 2),  # two groups share a node
        (8, 2, 1, 1),
        (2, 1, 8, 4),
        (4, 1, 3, 2),  # nodes of 5 (of 16): groups lie across their borders
    ],
)
def test_the_router_bounds_the_nodes(
    groups: int, kept: int, nodes: int, most: int
) -> None:
    made = router(
        n_routed_experts=16, num_experts_per_tok=4, n_group=groups, topk_group=kept
    )
    assert nodes_of_a_token(made, nodes) == most
    made.e_score_correction_bias.normal_(std=0.1)
    picks = made(torch.randn(500, 16)).experts // (16 // nodes)
    assert max(len(set(row)) for row in picks.tolist()) <= most


def test_greedy_picks_know_no_groups() -> None:
    made = router(n_group=4, topk_group=1, topk_method="greedy")
    assert nodes_of_a_token(made, 4) == 2
