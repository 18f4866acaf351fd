"""The mesh: its layout, and what it refuses."""

from __future__ import annotations

import pytest
from parallel.launch import torchrun

from r1lite.errors import R1Error
from r1lite.parallel.mesh import make_mesh


def test_layout_and_refusals_on_four_ranks() -> None:
    """Neighbours share experts, every other rank repeats them; stages come first."""
    found = sorted(torchrun("mesh_workers.py", 4).splitlines())
    assert found == [
        "rank 0 of (2, 2): ep [0, 1], dp [0, 2], rows [0]",
        "rank 0 of stage 0 of 2: dp [0, 1], pp [0, 2], rows [0, 1]",
        "rank 1 of (2, 2): ep [0, 1], dp [1, 3], rows [1]",
        "rank 1 of stage 0 of 2: dp [0, 1], pp [1, 3], rows [2, 3]",
        "rank 2 of (2, 2): ep [2, 3], dp [0, 2], rows [2]",
        "rank 2 of stage 1 of 2: dp [2, 3], pp [0, 2], rows [0, 1]",
        "rank 3 of (2, 2): ep [2, 3], dp [1, 3], rows [3]",
        "rank 3 of stage 1 of 2: dp [2, 3], pp [1, 3], rows [2, 3]",
        "refused: batch: 6 rows do not divide among 4 ranks; choose a multiple",
        "refused: dp: 2 times ep 2 is not 2 ranks of each of 2 stages; set dp to 1 or "
        "start 8 processes",
        "refused: dp: 3 times ep 2 is not 4 ranks; set dp to 2 or start 6 processes",
        "refused: ep: 0 does not divide 4 ranks; choose a divisor",
        "refused: ep: 3 does not divide 4 ranks; choose a divisor",
        "refused: ep: 4 does not divide 2 ranks of each of 2 stages; choose a divisor",
        "refused: pp: 3 does not divide 4 ranks; choose a divisor",
    ]


def test_a_lone_process_is_told_to_use_torchrun() -> None:
    with pytest.raises(R1Error, match="start it with torchrun"):
        make_mesh(ep=2)
