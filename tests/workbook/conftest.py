"""A made-up group of exercises in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1lite.workbook.generate import generate

SOURCE = '''"""Exercises of a chapter that does not exist."""

import torch
from torch import Tensor

# %% 1.1 | A number | predict | level 1 | 2 min
# How many sides has a die?
# HINT: count
#   them
# HINT: more than five
# HINT: six
# SOLUTION
SIDES = 6
# STUB
# SIDES = None  # your number
# END


# %% 1.2 | A norm | fill | level 2 | 5 min | swaps r1lite.attention.norm.RMSNorm.forward
# x (..., size) -> the same.
# HINT: mean of squares
def rms_forward(self, x: Tensor) -> Tensor:
    """Divide by the root of the mean square."""
    # SOLUTION
    mean = x.float().pow(2).mean(-1, keepdim=True)
    return (x.float() * torch.rsqrt(mean + self.eps)).to(x.dtype) * self.weight
    # STUB
    # raise NotImplementedError("1.2: normalise")
    # END


# %% 1.3 | A bug | bug | level 1 | 3 min
# HINT: count from 0
def last(x: Tensor) -> Tensor:
    """The last element of x (n,)."""
    # SOLUTION
    return x[len(x) - 1]
    # STUB
    # return x[len(x)]
    # END
'''
CHECKS = """from types import ModuleType

import torch

from r1lite.attention.norm import RMSNorm
from r1lite.book.expect import close, expect, shape


def check_1_1(mine: ModuleType) -> None:
    expect(mine.SIDES is not None and mine.SIDES > 5, "too few")
    close(mine.SIDES, 6, "a die is a cube")


def check_1_2(mine: ModuleType) -> None:
    norm, x = RMSNorm(5, eps=1e-2), 0.1 * torch.randn(3, 5)
    found = mine.rms_forward(norm, x)
    shape(found, (3, 5), "the output")
    close(found, norm(x), "eps stands outside the root", atol=1e-6)


def check_1_3(mine: ModuleType) -> None:
    x = torch.arange(4)
    close(mine.last(x), 3, "not the last one")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """exercises/ with one group, its stub freshly generated."""
    made = tmp_path / "exercises"
    for name, text in (("source", SOURCE), ("checks", CHECKS)):
        (made / name).mkdir(parents=True)
        (made / name / "01_toy.py").write_text(text)
    generate(made)
    monkeypatch.setenv("R1LITE_EXERCISES", str(made))
    return made


def write_answer(folder: Path, old: str, new: str) -> None:
    """Edit the reader's file; `old` must stand in it."""
    path = folder / "01_toy.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
