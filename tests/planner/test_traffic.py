"""Rows between ranks: by hand, and as the mean of many drawn routings."""

from __future__ import annotations

import pytest
import torch

from r1lite.config import R1Config
from r1lite.moe.gating import Router
from r1lite.planner.traffic import counted_rows, expected_rows

NANO, V3 = R1Config.preset("nano"), R1Config.preset("v3")


def test_counts_by_hand() -> None:
    """Ranks 0 1 | 2 3 hold experts 01 23 | 45 67; rank 0 and rank 3 have tokens."""
    none = torch.empty(0, 2, dtype=torch.int64)
    picks = [torch.tensor([[0, 2], [4, 6], [4, 5]]), none, none, torch.tensor([[1, 2]])]
    flat = counted_rows(picks, 8, 2, by_node=False)
    assert flat == [(4, 1), (0, 0), (0, 0), (2, 0)]
    by_node = counted_rows(picks, 8, 2, by_node=True)
    # Rank 0 hands 2 to its neighbour; rank 2 hands 6 on for it; rank 1 gets rank
    # 3's token for both ranks of its node, and hands it to rank 0.
    assert by_node == [(2, 1), (0, 1), (0, 1), (1, 0)]


def test_expected_rows_by_hand() -> None:
    """Two picks of 8 experts on 4 ranks in 2 nodes."""
    assert expected_rows(NANO, 4, 2) == (1.0, 0.5)
    across, inside = expected_rows(NANO, 4, 2, node_limit=2)
    assert across == pytest.approx(1 - 6 / 28)  # both picks in the own node: 6 of 28
    assert inside == pytest.approx(2 * (1 - 15 / 28))  # none of 2 experts: 15 of 28
    assert expected_rows(NANO, 1, 8) == expected_rows(NANO, 1, 8, 4) == (0, 0)


@pytest.mark.parametrize("by_node", [False, True])
@pytest.mark.parametrize(("config", "ranks", "node"), [(NANO, 8, 2), (V3, 64, 8)])
def test_expectation_is_the_mean_of_even_picks(
    config: R1Config, ranks: int, node: int, by_node: bool
) -> None:
    """Picks drawn evenly from as many nodes as the limit says."""
    nodes, experts = ranks // node, config.n_routed_experts
    tokens = 25_600 // ranks
    limit = config.topk_group if config.n_group > 1 else nodes
    kept = torch.rand(ranks * tokens, nodes).topk(limit).indices
    barred = torch.ones(ranks * tokens, nodes, dtype=torch.bool).scatter(1, kept, False)
    scores = torch.rand(ranks * tokens, nodes, experts // nodes)
    scores = scores.masked_fill(barred.unsqueeze(-1), -1.0).flatten(1)
    picks = list(scores.topk(config.num_experts_per_tok).indices.chunk(ranks))
    rows = counted_rows(picks, experts, node, by_node)
    found = torch.tensor(rows).sum(0) / (ranks * tokens)
    wanted = expected_rows(config, ranks, node, limit if by_node else None)
    assert found.tolist() == pytest.approx(list(wanted), rel=0.04)


def test_a_router_meets_slightly_more_nodes_than_even_picks() -> None:
    """V3's router keeps the nodes with the best pairs: 8 % more rows cross."""
    small = V3.with_(hidden_size=64, initializer_range=1.0)
    with torch.no_grad():
        picks = list(Router(small)(torch.randn(6400, 64)).experts.chunk(64))
    rows = counted_rows(picks, 256, 8, by_node=True)
    across = sum(r.across for r in rows) / 6400
    even = expected_rows(small, 64, 8, node_limit=4).across
    assert 1.0 < across / even < 1.15
    assert across <= 4 * 7 / 8 * 1.03  # 4 nodes, one of 8 its own
    flat = sum(r.across for r in counted_rows(picks, 256, 8, by_node=False)) / 6400
    assert flat == pytest.approx(7, rel=0.03)
