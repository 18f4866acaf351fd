"""Expert placement: by hand, and as properties of any load."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1lite.errors import R1Error
from r1lite.parallel.eplb import copies_for, in_order, place_experts


def test_copies_by_hand() -> None:
    """90 per copy against 30 and 20: the first gets both spare slots."""
    load = torch.tensor([90, 30, 20])
    assert copies_for(load, 3).tolist() == [1, 1, 1]
    assert copies_for(load, 4).tolist() == [2, 1, 1]
    assert copies_for(load, 5).tolist() == [3, 1, 1]
    assert copies_for(load, 6).tolist() == [4, 1, 1]  # 30 against 30: the first
    assert copies_for(load, 7).tolist() == [4, 2, 1]


def test_packing_by_hand() -> None:
    """7 | 6, then 5 goes to the 6? No: to the lighter one, then 4 fills up."""
    load = torch.tensor([7, 6, 5, 4])
    placed = place_experts(load, 2)
    assert sorted(map(sorted, placed.experts.tolist())) == [[0, 3], [1, 2]]
    assert placed.gpu_load(load).tolist() == [11.0, 11.0]
    assert placed.imbalance(load) == 1.0


def test_a_hot_expert_is_split_over_gpus() -> None:
    load = torch.tensor([39, 10, 10, 10, 10, 10, 10, 10])
    before = in_order(8, 4).imbalance(load)
    after = place_experts(load, 4, redundant=4)
    assert before == pytest.approx(49 / 27.25)
    assert after.imbalance(load) < 1.12
    holders = [g for g in range(4) if 0 in after.experts[g].tolist()]
    assert len(holders) == int(after.copies[0]) == 4  # never two on one GPU


@given(
    st.lists(st.integers(0, 1000), min_size=4, max_size=24),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_placement_is_whole(load: list[int], gpus: int, more: int) -> None:
    redundant = -len(load) % gpus + more * gpus
    tokens = torch.tensor(load)
    placed = place_experts(tokens, gpus, redundant)
    assert placed.experts.shape == (gpus, (len(load) + redundant) // gpus)
    counted = placed.experts.flatten().bincount(minlength=len(load))
    assert torch.equal(counted, placed.copies)
    assert int(placed.copies.min()) >= 1
    work = placed.gpu_load(tokens)
    torch.testing.assert_close(work.sum(), tokens.sum().double())
    busiest = (tokens.double() / placed.copies).max()
    assert float(work.max()) >= float(max(work.mean(), busiest)) - 1e-6


@given(st.lists(st.integers(1, 1000), min_size=8, max_size=8))
def test_one_slot_each_never_beats_spare_slots(load: list[int]) -> None:
    tokens = torch.tensor(load)
    busiest = [
        float((tokens.double() / copies_for(tokens, slots)).max())
        for slots in (8, 10, 12, 16)
    ]
    assert busiest == sorted(busiest, reverse=True)


# The example that DeepSeek's eplb prints for two layers: 12 experts in 4 groups, 4
# copies, 8 GPUs in 2 nodes.
EXAMPLE = [
    (
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    ),
    (
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ),
]


@pytest.mark.parametrize(("load", "slots"), EXAMPLE)
def test_by_node_as_deepseeks_own(load: list[int], slots: list[int]) -> None:
    """GPU by GPU; keeping groups together costs balance."""
    tokens, wanted = torch.tensor(load), torch.tensor(slots).view(8, 2)
    placed = place_experts(tokens, 8, redundant=4, nodes=2, n_group=4)
    assert torch.equal(placed.experts.sort().values, wanted.sort().values)
    assert torch.equal(placed.copies, torch.tensor(slots).bincount(minlength=12))
    free = place_experts(tokens, 8, redundant=4)
    assert free.imbalance(tokens) < placed.imbalance(tokens)


@given(
    st.lists(st.integers(0, 1000), min_size=24, max_size=24),
    st.sampled_from([(1, 1), (2, 2), (2, 4), (3, 6), (2, 12)]),
    st.integers(0, 3),
)
def test_groups_stay_in_their_node(
    load: list[int], sizes: tuple[int, int], more: int
) -> None:
    """Copies, too: the router's bound on nodes holds with them."""
    (nodes, groups), tokens = sizes, torch.tensor(load)
    gpus = 2 * nodes
    redundant = -len(load) % gpus + more * gpus
    placed = place_experts(tokens, gpus, redundant, nodes, groups)
    counted = placed.experts.flatten().bincount(minlength=24)
    assert torch.equal(counted, placed.copies)
    assert int(placed.copies.min()) >= 1
    group_of = placed.experts.view(nodes, -1) // (24 // groups)
    homes = [set(row) for row in group_of.tolist()]
    assert sorted(g for home in homes for g in home) == list(range(groups))
    assert {len(home) for home in homes} == {groups // nodes}


@pytest.mark.parametrize(
    ("gpus", "nodes", "n_group", "words"),
    [
        (4, 3, 3, "nodes: 4 GPUs do not fill 3"),
        (0, 1, 1, "nodes: 0 GPUs"),
        (4, 2, 3, "n_group: 12 experts in 3 groups do not fill 2 nodes"),
        (4, 2, 8, "n_group: 12 experts in 8 groups"),
    ],
)
def test_bad_nodes(gpus: int, nodes: int, n_group: int, words: str) -> None:
    with pytest.raises(R1Error, match=words):
        place_experts(torch.ones(12), gpus, 0, nodes, n_group)


@pytest.mark.parametrize(
    ("load", "gpus", "redundant", "words"),
    [
        ([1, 2, 3], 2, 0, "redundant: 3 experts and 0 copies"),
        ([1, 2, 3, 4], 2, -2, "redundant"),
        ([1, -2, 3, 4], 2, 0, "negative"),
    ],
)
def test_bad_input(load: list[int], gpus: int, redundant: int, words: str) -> None:
    with pytest.raises(R1Error, match=words):
        place_experts(torch.tensor(load), gpus, redundant)
