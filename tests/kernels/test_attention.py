"""Flash attention in the interpreter equals softmax(q k^T) v, gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import r1lite.kernels.attention as module
from r1lite.errors import R1Error
from r1lite.kernels.attention import (
    _attention,
    attention,
    attention_reference,
    tiles,
)

pytestmark = pytest.mark.usefixtures("kernels_on")

# lengths of documents, heads, key heads, d_qk, d_v, causal
CASES = [
    ([5], 1, 1, 16, 16, True),
    ([70], 2, 2, 48, 32, True),  # nano: 32 + 16 beside 32; more than one tile
    ([1, 0, 37, 66], 4, 2, 24, 20, True),  # an empty document, groups, odd widths
    ([33, 40], 2, 1, 40, 8, False),
    ([130], 1, 1, 192, 128, True),  # V3
    ([3], 1, 1, 7, 5, True),
]


def make(
    lengths: list[int], heads: int, kv: int, d: int, dv: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    q, k = torch.randn(n, heads, d, dtype=dtype), torch.randn(n, kv, d, dtype=dtype)
    return q, k, torch.randn(n, kv, dv, dtype=dtype), starts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference(
    case: tuple[list[int], int, int, int, int, bool], dtype: torch.dtype
) -> None:
    lengths, heads, kv, d, dv, causal = case
    *inputs, starts = make(lengths, heads, kv, d, dv, dtype)
    mine = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    found = attention(*mine, starts, d**-0.5, causal)
    wanted = attention_reference(*theirs, starts, d**-0.5, causal)
    direction = torch.randn_like(wanted)
    found.backward(direction.to(dtype))
    wanted.backward(direction)
    tol = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), wanted, atol=tol, rtol=tol)
    for m, t in zip(mine, theirs, strict=True):
        assert m.grad is not None
        torch.testing.assert_close(m.grad.double(), t.grad, atol=3 * tol, rtol=tol)


@settings(max_examples=8)
@given(
    st.lists(st.integers(0, 45), min_size=1, max_size=4),
    st.integers(1, 2),  # key heads
    st.integers(1, 3),  # query heads for each
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_shape(
    lengths: list[int], kv: int, group: int, d: int, dv: int, causal: bool
) -> None:
    case = lengths, kv * group, kv, d, dv, causal
    test_it_equals_the_reference(case, torch.float32)


@pytest.mark.parametrize("chip", ["sm_90", "gfx942"])
def test_the_tiles_of_other_chips(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (module.FORWARD, module.BACK_KEYS, module.BACK_QUERIES):
        monkeypatch.setitem(table, "sm_80", table[chip])
    for dtype in (torch.float32, torch.float16):
        test_it_equals_the_reference(CASES[1], dtype)


def test_documents_do_not_see_each_other() -> None:
    q, k, v, starts = make([20, 30], 2, 2, 16, 16, torch.float32)
    before = attention(q, k, v, starts, 0.25)
    v[:20] += 100.0
    k[:20] *= -3.0
    after = attention(q, k, v, starts, 0.25)
    assert torch.equal(before[20:], after[20:])
    assert not torch.allclose(before[:20], after[:20])


def test_a_slice_of_a_wider_projection_is_read_where_it_lies() -> None:
    """k_nope and values are halves of one product, as in MLA."""
    both = torch.randn(40, 2, 48)
    k, v = both.split((32, 16), -1)
    q, starts = torch.randn(40, 2, 32), torch.tensor([0, 40])
    torch.testing.assert_close(
        attention(q, k, v, starts, 0.2), attention_reference(q, k, v, starts, 0.2)
    )


def test_no_token_at_all() -> None:
    *inputs, starts = make([0], 2, 2, 16, 16, torch.float32)
    assert attention(*inputs, starts, 1.0).shape == (0, 2, 16)


def test_large_scores_do_not_overflow() -> None:
    q, k, v, starts = make([40], 1, 1, 16, 16, torch.float32)
    found = attention(q * 100, k, v, starts, 1.0)
    wanted = attention_reference(q * 100, k, v, starts, 1.0)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_op_is_well_formed() -> None:
    *inputs, starts = make([9, 4], 2, 1, 24, 16, torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(_attention, (*inputs, starts, 9, 0.2, True))


@pytest.mark.parametrize(
    ("width", "wanted"),
    [(192, (128, 64)), (48, (32, 16)), (576, (512, 64)), (128, (128, 0)), (7, (16, 0))],
)
def test_a_width_is_two_powers_of_two(width: int, wanted: tuple[int, int]) -> None:
    assert tiles(width) == wanted


@pytest.mark.parametrize(
    "shapes",
    [((4, 3, 8), (4, 2, 8), (4, 2, 8)), ((4, 2, 8), (5, 2, 8), (5, 2, 8)),
     ((4, 2, 8), (4, 2, 9), (4, 2, 8)), ((4, 2, 8), (4, 2, 8), (4, 1, 8))],
)  # fmt: skip
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    q, k, v = (torch.randn(s) for s in shapes)
    with pytest.raises(R1Error, match="attention: "):
        attention(q, k, v, torch.tensor([0, 4]), 1.0)
