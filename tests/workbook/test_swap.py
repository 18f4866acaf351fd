"""The reader's parts inside the package: put in, named, put back, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from workbook.conftest import CHECKS, SOURCE, write_answer

from r1lite.attention import mla, rope
from r1lite.attention.norm import RMSNorm
from r1lite.errors import R1Error
from r1lite.workbook import swap
from r1lite.workbook.generate import generate

STUB = 'raise NotImplementedError("1.2: normalise")'
ROTATE = """

# %% 1.4 | A turn | fill | level 1 | 3 min | swaps r1lite.attention.rope.rotate
# HINT: call it
def my_rotate(x, cos, sin, interleave):
    # SOLUTION
    import r1lite.attention.rope
    return -x
    # STUB
    # raise NotImplementedError
    # END
"""


@pytest.fixture
def solved(folder: Path) -> Path:
    """The folder with a swappable module function too, and all solved."""
    source = folder / "source" / "01_toy.py"
    source.write_text(SOURCE + ROTATE)
    checks = folder / "checks" / "01_toy.py"
    checks.write_text(CHECKS + "\n\ndef check_1_4(mine):\n    assert mine.my_rotate\n")
    generate(folder, force=True)
    (folder / "01_toy.py").write_text((folder / "solutions" / "01_toy.py").read_text())
    return folder


def test_passing_parts_are_put_in_everywhere_and_put_back(solved: Path) -> None:
    parts, refused = swap.own_parts(solved)
    assert [p.target for p in parts] == [
        "r1lite.attention.norm.RMSNorm.forward",
        "r1lite.attention.rope.rotate",
    ]
    assert refused == []
    before = RMSNorm.forward, rope.rotate
    with swap.using(parts):
        assert RMSNorm.forward is parts[0].function
        assert rope.rotate is parts[1].function
        assert mla.rotate is parts[1].function  # imported by name
        assert torch.equal(mla.rotate(torch.ones(2), None, None, True), -torch.ones(2))
    assert (RMSNorm.forward, rope.rotate) == before
    assert mla.rotate is before[1]


def test_a_failing_run_puts_everything_back(solved: Path) -> None:
    parts, _ = swap.own_parts(solved)
    before = RMSNorm.forward
    with pytest.raises(ValueError, match="stop"), swap.using(parts):
        raise ValueError("stop")
    assert RMSNorm.forward is before


def test_a_wrong_part_is_refused_aloud(solved: Path) -> None:
    write_answer(solved, "torch.rsqrt(mean + self.eps)", "torch.rsqrt(mean)")
    console = Console(record=True, width=120)
    parts = swap.announced_parts(console)
    text = console.export_text()
    assert [p.exercise.number for p in parts] == ["1.4"]
    assert "not used: 1.2 A norm" in text
    assert "eps stands outside the root" in text
    assert "yours: 1.4 r1lite.attention.rope.rotate" in text


def test_nothing_passing_is_an_error(folder: Path) -> None:
    with pytest.raises(R1Error, match="no exercise that can train"):
        swap.announced_parts(Console(quiet=True))


def test_other_arguments_are_refused(solved: Path) -> None:
    write_answer(solved, "def my_rotate(x, cos,", "def my_rotate(x, cosine,")
    parts, _ = swap.own_parts(solved)
    before = RMSNorm.forward
    with (
        pytest.raises(R1Error, match=r"exercise 1.4: the arguments are .*cosine"),
        swap.using(parts),
    ):
        pass
    assert RMSNorm.forward is before


def test_a_target_that_does_not_exist_is_an_error() -> None:
    for target in ("r1lite.nowhere.f", "r1lite.moe.gating.Router.nope"):
        with pytest.raises(R1Error, match="the package has no"):
            swap.resolve(target)


def test_the_digest_follows_the_text(solved: Path) -> None:
    first = swap.described(swap.own_parts(solved)[0])
    assert first == swap.described(swap.own_parts(solved)[0])
    write_answer(solved, "x.float().pow(2)", "x.float().square()")
    assert swap.described(swap.own_parts(solved)[0]) != first


def test_a_run_with_own_parts_needs_them_again() -> None:
    swap.require_named(None, mine=False)
    swap.require_named({"1.2": "x"}, mine=True)
    with pytest.raises(R1Error, match="add --mine"):
        swap.require_named({"1.2": "x"}, mine=False)
