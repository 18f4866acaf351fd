"""Paged MLA decode in the interpreter equals attention over the whole latents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels import mla_decode as module
from r1lite.kernels.choose import Tile
from r1lite.kernels.mla_decode import (
    _mla_decode,
    mla_decode,
    mla_decode_reference,
    parts_for,
)

TOL = {torch.float32: 1e-5, torch.float16: 4e-3}
Paged = tuple[Tensor, Tensor, Tensor, Tensor]


def paged(
    lengths: list[int],
    heads: int,
    width: int,
    block: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Paged, list[Tensor]]:
    """The arguments, pages shuffled, NaN where no token is; and each row's latents."""
    need = [-(-n // block) for n in lengths]
    order = torch.randperm(sum(need) + 3).tolist()
    pages = torch.full((len(order), block, width), float("nan"), dtype=dtype)
    tables = torch.full((len(lengths), max(need, default=0) + 1), -7, dtype=torch.int32)
    latents = []
    for row, (n, pages_of) in enumerate(zip(lengths, need, strict=True)):
        latents.append(torch.randn(n, width, dtype=dtype))
        for i in range(pages_of):
            page = order.pop()
            tables[row, i] = page
            part = latents[-1][i * block : (i + 1) * block]
            pages[page, : len(part)] = part
    query = torch.randn(len(lengths), heads, width, dtype=dtype)
    return (query, pages, tables, torch.tensor(lengths, dtype=torch.int32)), latents


def exact(query: Tensor, latents: list[Tensor], rank: int, scale: float) -> Tensor:
    """Softmax written out in float64, a sequence at a time."""
    rows = []
    for q, c in zip(query.double(), latents, strict=True):
        c = c.double()
        p = (q @ c.T * scale).softmax(-1)
        rows.append(p @ c[:, :rank] if len(c) else q.new_zeros(len(q), rank))
    empty = query.new_zeros(0, query.shape[1], rank).double()
    return torch.stack(rows) if rows else empty


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 90), max_size=4),
    st.integers(1, 20),
    st.sampled_from([(48, 16), (16, 8), (20, 6), (33, 1)]),
    st.integers(1, 17),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from(list(TOL)),
)
def test_any_shape(
    lengths: list[int],
    heads: int,
    widths: tuple[int, int],
    block: int,
    splits: int | None,
    dtype: torch.dtype,
) -> None:
    rank, rope = widths
    given_, latents = paged(lengths, heads, rank + rope, block, dtype)
    wanted = exact(given_[0], latents, rank, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1LITE_KERNELS", "triton")
        found = mla_decode(*given_, rank, 0.3, splits)
    reference = mla_decode_reference(*given_, rank, 0.3)
    tol = TOL[dtype]
    for result in (found, reference):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), wanted, atol=tol, rtol=tol)


@pytest.mark.parametrize("dtype", list(TOL))
@pytest.mark.parametrize("tile", sorted(set(module.TILES.values())))
def test_the_sizes_of_v3(
    tile: Tile, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, kernels_on: None
) -> None:
    """576 / 512, more heads than a tile has, with every chip's tile."""
    monkeypatch.setitem(module.TILES, "sm_80", tile)
    given_, latents = paged([70, 3], 66, 576, 16, dtype)
    found = mla_decode(*given_, 512, 192**-0.5, 2)
    wanted = exact(given_[0], latents, 512, 192**-0.5)
    torch.testing.assert_close(found.double(), wanted, atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.usefixtures("kernels_on")
def test_a_sequence_does_not_feel_its_neighbours() -> None:
    """With a number of parts of one's own, the bits are those of it alone."""
    (query, pages, tables, lengths), _ = paged([40, 7, 90], 4, 64, 16)
    together = mla_decode(query, pages, tables, lengths, 48, 0.2, 3)
    for i in range(3):
        one = slice(i, i + 1)
        alone = mla_decode(query[one], pages, tables[one], lengths[one], 48, 0.2, 3)
        assert torch.equal(alone, together[one])


@pytest.mark.usefixtures("kernels_on")
def test_large_scores_do_not_overflow() -> None:
    given_, latents = paged([50], 2, 24, 8)
    found = mla_decode(given_[0] * 100, *given_[1:], 16, 1.0, 4)
    wanted = exact(given_[0] * 100, latents, 16, 1.0)
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("kernels_on")
def test_a_cache_that_lies_inside_a_larger_one_is_read_where_it_lies() -> None:
    given_, _ = paged([20, 33], 3, 24, 4)
    query, pages, tables, lengths = given_
    layers = torch.full((len(pages), 2, 4, 30), float("nan"))
    layers[:, 1, :, 2:26] = pages
    found = mla_decode(query, layers[:, 1, :, 2:26], tables, lengths, 16, 0.2, 2)
    assert torch.equal(found, mla_decode(*given_, 16, 0.2, 2))


@pytest.mark.usefixtures("kernels_on")
def test_the_op_is_well_formed() -> None:
    given_, _ = paged([9, 20], 3, 24, 4)
    torch.library.opcheck(_mla_decode, (*given_, 16, 0.2, 2))


def test_parts_grow_with_the_tokens_and_shrink_with_the_batch() -> None:
    one = torch.empty(1, 16, 576)
    assert parts_for(one, 100) == 1
    assert parts_for(one, 100_000) == 8
    assert parts_for(torch.empty(4, 16, 576), 100_000) == 2
    assert parts_for(torch.empty(64, 16, 576), 100_000) == 1


def test_what_does_not_fit() -> None:
    (query, pages, tables, lengths), _ = paged([9, 20], 3, 24, 4)
    with pytest.raises(R1Error, match="mla_decode: query"):
        mla_decode(query[..., :20], pages, tables, lengths, 16, 0.2)
    with pytest.raises(R1Error, match="of one dtype"):
        mla_decode(query, pages.half(), tables, lengths, 16, 0.2)
    with pytest.raises(R1Error, match="mla_decode: block_tables"):
        mla_decode(query, pages, tables[:1], lengths, 16, 0.2)
    with pytest.raises(R1Error, match="splits: 0 parts"):
        mla_decode(query, pages, tables, lengths, 16, 0.2, 0)
    with pytest.raises(R1Error, match="lengths: 40 tokens"):
        mla_decode(query, pages, tables, lengths + 20, 16, 0.2)
