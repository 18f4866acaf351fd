"""Permute, unpermute and grouped GEMM in the interpreter equal their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import compare

from r1lite.errors import R1Error
from r1lite.kernels.grouped import _grouped_mm, grouped_mm, grouped_reference
from r1lite.kernels.permute import (
    _permute,
    _unpermute,
    permute,
    permute_reference,
    unpermute,
    unpermute_reference,
)

pytestmark = pytest.mark.usefixtures("kernels_on")


COUNTS = [
    [5],
    [0, 70, 1, 0, 64],  # empty experts, more than a tile, exactly a tile
    [0, 0, 3],
    [0, 0],
    [1] * 9,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(16, 16), (70, 33), (3, 100)])
@pytest.mark.parametrize("counts", COUNTS)
def test_grouped_mm(counts: list[int], n: int, k: int, dtype: torch.dtype) -> None:
    sizes = torch.tensor(counts)
    x = torch.randn(sum(counts), k, dtype=dtype)
    w = torch.randn(len(counts), n, k, dtype=dtype) / k**0.5
    compare(
        lambda x, w: grouped_mm(x, w, sizes),
        lambda x, w: grouped_reference(x, w, sizes),
        [x, w],
        2e-5 if dtype == torch.float32 else 2e-2,
    )


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=5),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_grouped_mm_of_any_shape(counts: list[int], n: int, k: int) -> None:
    test_grouped_mm(counts, n, k, torch.float32)


def test_an_expert_without_tokens_has_a_zero_gradient() -> None:
    w = torch.randn(3, 8, 16, requires_grad=True)
    grouped_mm(torch.randn(4, 16), w, torch.tensor([4, 0, 0])).sum().backward()
    assert w.grad is not None
    assert w.grad[0].abs().sum() > 0
    assert not w.grad[1:].any()


def test_transposed_weights_are_read_where_they_lie() -> None:
    w = torch.randn(2, 16, 24).transpose(1, 2)
    x, counts = torch.randn(7, 16), torch.tensor([3, 4])
    torch.testing.assert_close(
        grouped_mm(x, w, counts), grouped_reference(x, w, counts)
    )


@settings(max_examples=20)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 40))
def test_permute_and_unpermute(tokens: int, top_k: int, n: int) -> None:
    picks = torch.rand(tokens, 6).argsort(-1)[:, :top_k].flatten()
    order = picks.argsort(stable=True)
    place = order.argsort()
    x, weights = torch.randn(tokens, n), torch.rand(tokens, top_k)
    done = torch.randn(tokens * top_k, n)
    compare(
        lambda x: permute(x, order, place, top_k),
        lambda x: permute_reference(x, order, top_k),
        [x],
        2e-5,
    )
    compare(
        lambda d, w: unpermute(d, place, w),
        lambda d, w: unpermute_reference(d, place, w),
        [done, weights],
        2e-5,
    )


def test_the_ops_are_well_formed() -> None:
    order = torch.tensor([1, 3, 0, 2])
    x = torch.randn(2, 8, requires_grad=True)
    torch.library.opcheck(_permute, (x, order, order.argsort(), 2))
    done = torch.randn(4, 8, requires_grad=True)
    weights = torch.rand(2, 2, requires_grad=True)
    torch.library.opcheck(_unpermute, (done, order.argsort(), weights))
    w = torch.randn(3, 8, 8, requires_grad=True)
    torch.library.opcheck(_grouped_mm, (done, w, torch.tensor([1, 0, 3])))


def test_what_does_not_fit() -> None:
    with pytest.raises(R1Error, match=r"grouped_mm: rows \(4, 8\)"):
        grouped_mm(torch.randn(4, 8), torch.randn(2, 5, 9), torch.tensor([2, 2]))
