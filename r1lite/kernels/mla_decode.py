"""MLA decode: one new token of each sequence attends to its latents, page by page.

    s_hj = scale * q_h . c_j,  o_h = sum over j of softmax(s_h)_j * c_j[:rank]

"Absorbed" as in DeepSeek-V2 (arXiv 2405.04434, section 2.1.2): the query was carried
into latent space, so all heads share one key per token, and the value is its first
`rank` numbers. A tile of latents is read once and multiplied twice.

The cache lies in pages that a table names for each sequence. One sequence at a time
would leave most of a GPU idle, so its tokens are split; part s leaves o_s and
L_s = log sum e^s, and a second pass merges them (arXiv 2311.01282):

    o = sum over s of e^(L_s - L) o_s,  L = log sum over s of e^(L_s)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.attention import tiles
from r1lite.kernels.choose import (
    Tile,
    jit,
    power_of_two,
    tile_for,
    tl,
    triton,
    use_triton,
)

# (heads, tokens, warps, stages): results/kernels/compile.md says what they take.
TILES = {
    "sm_80": Tile(16, 32, 4),
    "sm_90": Tile(64, 32, 8),
    "sm_100": Tile(64, 32, 8),
    "gfx942": Tile(16, 32, 4),
}
LEAST = 128  # tokens: a smaller part is not worth a program


def mla_decode_reference(
    query: Tensor,
    pages: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    rank: int,
    scale: float,
) -> Tensor:
    """What `mla_decode` computes: pages gathered in a row, then one attention."""
    batch, heads, width = query.shape
    longest = int(lengths.max()) if batch else 0
    if longest > block_tables.shape[1] * pages.shape[1]:
        raise R1Error(
            f"lengths: {longest} tokens, but the tables name {block_tables.shape[1]} "
            f"pages of {pages.shape[1]}; give wider block_tables"
        )
    if not longest:
        return query.new_zeros(batch, heads, rank)
    used = -(-longest // pages.shape[1])
    # Entries past a sequence's end may name anything; what they name is never seen.
    table = block_tables[:, :used].clamp(0, len(pages) - 1)
    past = pages[table].view(batch, -1, width)[:, :longest]
    seen = torch.arange(longest, device=query.device) < lengths[:, None]
    if not bool(seen.all()):
        past.masked_fill_(~seen[:, :, None], 0.0)  # unwritten memory may hold NaN
    mask = seen[:, None, None, :]
    # As in `MLA`: heads stand where queries usually do, values are the keys.
    rows, past = query.unsqueeze(1), past.unsqueeze(1)
    out = F.scaled_dot_product_attention(rows, past, past, mask, scale=scale)
    out = out[:, 0, :, :rank]
    return out.masked_fill((lengths == 0)[:, None, None], 0.0)


@jit
def _latents(pages, rows, slots, seen, first, width, SIZE: tl.constexpr):
    """Some numbers of each token's latent: (tokens, SIZE), zero where unseen."""
    at = first + tl.arange(0, SIZE)
    mask = seen[:, None] & (at < width)[None, :]
    return tl.load(pages + (rows + slots)[:, None] + at[None, :], mask=mask, other=0.0)


@jit
def _heads(query, stride, real, first, width, SIZE: tl.constexpr):
    row, at = tl.arange(0, real.shape[0]), first + tl.arange(0, SIZE)
    mask = real[:, None] & (at < width)[None, :]
    return tl.load(query + row[:, None] * stride + at[None, :], mask=mask, other=0.0)


@jit
def _keep(part, place, rank, real, first, x, SIZE: tl.constexpr):
    at = first + tl.arange(0, SIZE)
    mask = real[:, None] & (at < rank)[None, :]
    tl.store(part + place[:, None] * rank + at[None, :], x, mask=mask)


@jit
def _part(
    query, pages, tables, lengths, part, lse, scale,
    heads, rank, rope, block,
    q_batch, q_head, p_block, p_slot, t_batch,
    R1: tl.constexpr, R2: tl.constexpr, P: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """M heads of one sequence over one part of its tokens."""
    row, split, splits = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, splits), N) * N
    begin, end = split * share, tl.minimum((split + 1) * share, length)
    head = tl.program_id(0) * M + tl.arange(0, M)
    real = head < heads
    q_at = query + row.to(tl.int64) * q_batch + tl.program_id(0) * M * q_head
    q1 = _heads(q_at, q_head, real, 0, rank, R1)
    qp = _heads(q_at + rank, q_head, real, 0, rope, P)
    acc1 = tl.zeros((M, R1), tl.float32)
    if R2:
        q2 = _heads(q_at, q_head, real, R1, rank, R2)
        acc2 = tl.zeros((M, R2), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    for first in range(begin, end, N):
        at = first + tl.arange(0, N)
        seen = at < end
        page = tl.load(
            tables + row.to(tl.int64) * t_batch + at // block, mask=seen, other=0
        )
        rows, slots = page.to(tl.int64) * p_block, at % block * p_slot
        c1 = _latents(pages, rows, slots, seen, 0, rank, R1)
        cp = _latents(pages + rank, rows, slots, seen, 0, rope, P)
        s = tl.dot(q1, tl.trans(c1), input_precision="ieee")
        s += tl.dot(qp, tl.trans(cp), input_precision="ieee")
        if R2:
            c2 = _latents(pages, rows, slots, seen, R1, rank, R2)
            s += tl.dot(q2, tl.trans(c2), input_precision="ieee")
        s = tl.where(seen[None, :], s * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp(s - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(p, 1)
        p = p.to(c1.dtype)
        acc1 = acc1 * fade[:, None] + tl.dot(p, c1, input_precision="ieee")
        if R2:
            acc2 = acc2 * fade[:, None] + tl.dot(p, c2, input_precision="ieee")
        top = higher
    place = (row.to(tl.int64) * heads + head) * splits + split
    total = tl.where(total > 0.0, total, 1.0)  # no token here: zeros, and L = -inf
    _keep(part, place, rank, real, 0, acc1 / total[:, None], R1)
    if R2:
        _keep(part, place, rank, real, R1, acc2 / total[:, None], R2)
    tl.store(lse + place, top + tl.log(total), mask=real)


@jit
def _merge(part, lse, out, splits, rank, S: tl.constexpr, SIZE: tl.constexpr):
    """One head of one sequence: its parts, weighed, always in the same order."""
    place = tl.program_id(0).to(tl.int64)
    every, at = tl.arange(0, S), tl.arange(0, SIZE)
    inside = at < rank
    levels = tl.load(lse + place * splits + every, every < splits, float("-inf"))
    top = tl.max(levels, 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # a sequence without tokens
    total = tl.sum(tl.exp(levels - top), 0)
    acc = tl.zeros((SIZE,), tl.float32)
    for s in range(splits):
        share = tl.exp(tl.load(lse + place * splits + s) - top)
        o = tl.load(part + (place * splits + s) * rank + at, mask=inside, other=0.0)
        acc += share * o
    acc = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(out + place * rank + at, acc, mask=inside)


def shape_of(rank: int, rope: int, tile: Tile) -> dict[str, int]:
    """The constants of `_part` for one tile size."""
    first, second = tiles(rank)
    wide = max(16, power_of_two(rope))
    return {"R1": first, "R2": second, "P": wide, "M": tile.m, "N": tile.n}


def parts_for(query: Tensor, capacity: int) -> int:
    """Parts that give every multiprocessor a program, none below `LEAST` tokens."""
    tile = tile_for(TILES, query)
    programs = max(1, len(query) * triton.cdiv(query.shape[1], tile.m))
    units = 8
    if query.is_cuda:
        units = torch.cuda.get_device_properties(query.device).multi_processor_count
    return max(1, min(triton.cdiv(units, programs), triton.cdiv(capacity, LEAST)))


@torch.library.custom_op("r1lite::mla_decode", mutates_args=())
def _mla_decode(
    query: Tensor,
    pages: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    rank: int,
    scale: float,
    splits: int,
) -> Tensor:
    batch, heads, width = query.shape
    out = query.new_empty(batch, heads, rank)
    if not out.numel():
        return out
    tile = tile_for(TILES, query)
    part = query.new_empty(batch, heads, splits, rank, dtype=torch.float32)
    lse = query.new_empty(batch, heads, splits, dtype=torch.float32)
    _part[triton.cdiv(heads, tile.m), batch, splits](
        *(query, pages, block_tables, lengths, part, lse, scale),
        *(heads, rank, width - rank, pages.shape[1]),
        *(*query.stride()[:2], *pages.stride()[:2], block_tables.stride(0)),
        **shape_of(rank, width - rank, tile),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    sizes = power_of_two(splits), power_of_two(rank)
    _merge[(batch * heads,)](part, lse, out, splits, rank, *sizes)
    return out


@_mla_decode.register_fake
def _(
    query: Tensor,
    pages: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    rank: int,
    scale: float,
    splits: int,
) -> Tensor:
    return query.new_empty(*query.shape[:2], rank)


def mla_decode(
    query: Tensor,
    pages: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    rank: int,
    scale: float,
    splits: int | None = None,
) -> Tensor:
    """Absorbed attention of one token per sequence over a paged latent cache.

    No gradient: decoding has none.

    Args:
        query: (batch, heads, rank + rope), the absorbed and the turned part.
        pages: (blocks, block size, rank + rope), latents and rotary keys, in the
            query's dtype. Pages that no sequence has reached may hold anything.
        block_tables: (batch, at most) int32, each sequence's pages in order; entries
            past its length may name anything.
        lengths: (batch,) int32, tokens of each sequence; 0 gives zeros. On a GPU they
            are not compared with the tables, which would wait for it.
        scale: of the scores.
        splits: parts of a sequence, merged in a second pass. None: as many as fill
            the GPU, so the last bits depend on the batch's size; a number of your own
            makes each sequence's result independent of its neighbours.

    Returns:
        (batch, heads, rank).

    Raises:
        R1Error: shapes that do not belong together; on a CPU also lengths that the
            tables do not hold.
    """
    _check(query, pages, block_tables, lengths, rank, splits)
    if not use_triton(query):
        return mla_decode_reference(query, pages, block_tables, lengths, rank, scale)
    query, pages, block_tables = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (query, pages, block_tables)
    )
    if splits is None:
        splits = parts_for(query, block_tables.shape[1] * pages.shape[1])
    result: Tensor = _mla_decode(
        query, pages, block_tables, lengths.contiguous(), rank, scale, splits
    )
    return result


def _check(
    query: Tensor,
    pages: Tensor,
    tables: Tensor,
    lengths: Tensor,
    rank: int,
    splits: int | None,
) -> None:
    fits = query.ndim == pages.ndim == 3 and query.shape[2] == pages.shape[2] >= rank
    if not fits or rank < 1 or query.dtype != pages.dtype:
        raise R1Error(
            f"mla_decode: query {tuple(query.shape)} {query.dtype} and pages "
            f"{tuple(pages.shape)} {pages.dtype}, rank {rank}; give (batch, heads, "
            "rank + rope) and (blocks, block size, rank + rope) of one dtype"
        )
    if tables.ndim != 2 or not len(query) == len(tables) == len(lengths):
        raise R1Error(
            f"mla_decode: block_tables {tuple(tables.shape)} and lengths "
            f"{tuple(lengths.shape)} for a batch of {len(query)}; give (batch, at "
            "most) and (batch,)"
        )
    if splits is not None and splits < 1:
        raise R1Error(f"splits: {splits} parts hold nothing; give 1 or more, or None")
