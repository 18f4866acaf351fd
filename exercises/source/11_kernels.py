"""Exercises of chapter 11: kernels, each from a specification in plain PyTorch.

They run in Triton's interpreter, on a CPU. It follows every pointer: one that points
far outside ends Python without a message. Then look at your masks.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
import triton
import triton.language as tl
from torch import Tensor

# %% 11.1 | How many fit | predict | level 1 | 10 min
# A multiprocessor of an H100 has 65,536 registers, room for 64 warps of 32 threads,
# and 233,472 bytes of shared memory. A block starts only if all it needs is free.
# Registers are handed out in eights to each thread. Kernel A: 4 warps, 169 registers
# a thread, 8,192 bytes of shared memory. Kernel B: 8 warps, 58 registers, 65,536
# bytes. How many blocks of each run at a time? Which of the three limits B: "registers",
# "warps" or "shared"? And what is B's occupancy, its warps as a share of 64?
# HINT: three limits, each in whole blocks; the smallest counts.
# HINT: 169 is no multiple of 8: a thread of A gets 176, and a block has 128 threads.
# HINT: B: 64 / 8 by warps, 65,536 / (64 * 256) by registers, 233,472 / 65,536 by
#   shared memory, rounded down.
# SOLUTION
BLOCKS_A = 65_536 // (176 * 128)
BLOCKS_B = min(64 // 8, 65_536 // (64 * 256), 233_472 // 65_536)
LIMIT_B = "shared"
OCCUPANCY_B = BLOCKS_B * 8 / 64
# STUB
# BLOCKS_A = None  # blocks at a time
# BLOCKS_B = None
# LIMIT_B = None  # "registers", "warps" or "shared"
# OCCUPANCY_B = None  # from 0 to 1
# END


# %% 11.2 | A tile of a matrix | fill | level 1 | 20 min
# The specification is `bias_relu_spec`. In the kernel a program owns a tile: rows
# program_id(0) * M + 0..M-1 and columns program_id(1) * N + 0..N-1. Element (i, j) of
# x lies at x + i * x_row + j * x_column: x may be a view, or transposed. y is
# contiguous: (i, j) at y + i * columns + j. Neither M divides the rows nor N the
# columns. Float32.
# HINT: row = tl.program_id(0) * M + tl.arange(0, M) are M numbers; row[:, None] is a
#   column of them, and adding something[None, :] makes an (M, N) block of offsets.
# HINT: the mask is (row < rows)[:, None] & (column < columns)[None, :], for the load
#   of x and for the store. bias has a mask of its own, column < columns.
# HINT: tl.maximum(v + b[None, :], 0.0) is the result, v loaded from
#   x + row[:, None] * x_row + column[None, :] * x_column.
def bias_relu_spec(x: Tensor, bias: Tensor) -> Tensor:
    """x: (rows, columns), bias: (columns,) -> (rows, columns)."""
    return (x + bias).relu()


@triton.jit
def bias_relu_kernel(
    x, bias, y, rows, columns, x_row, x_column, M: tl.constexpr, N: tl.constexpr
):
    # SOLUTION
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = row[:, None] * x_row + column[None, :] * x_column
    v = tl.load(x + at, mask=inside, other=0.0)
    b = tl.load(bias + column, mask=column < columns, other=0.0)
    there = row[:, None] * columns + column[None, :]
    tl.store(y + there, tl.maximum(v + b[None, :], 0.0), mask=inside)
    # STUB
    # raise NotImplementedError("11.2: offsets, mask, load, store")
    # END


# %% 11.3 | A row that is too long | fill | level 2 | 25 min
# Rows have n numbers and a program has room for SIZE of them. Go over the row once, in
# pieces, with a running maximum m and the sum l of e^(x - m), and store m + log(l).
# Row r lies at x + r * stride; out is contiguous. SIZE may be larger than n or not
# divide it. Start m at -inf; each piece has at least one real number.
# HINT: in `for first in range(0, n, SIZE)` the piece is first + tl.arange(0, SIZE),
#   masked by < n. What must `other` be, so that neither maximum nor sum sees it?
# HINT: higher = tl.maximum(m, tl.max(v, 0)). The old sum was made with the old
#   maximum: it has to be multiplied by e^(m - higher) before anything is added.
# HINT: m = tl.full((), -float("inf"), tl.float32) and l = tl.zeros((), tl.float32)
#   start it; in the loop: l = l * tl.exp(m - higher) + tl.sum(tl.exp(v - higher), 0),
#   then m = higher.
def logsumexp_spec(x: Tensor) -> Tensor:
    """x: (rows, n) -> (rows,)."""
    return x.logsumexp(-1)


@triton.jit
def logsumexp_kernel(x, out, stride, n, SIZE: tl.constexpr):
    # SOLUTION
    row = tl.program_id(0)
    m = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, n, SIZE):
        at = first + tl.arange(0, SIZE)
        v = tl.load(x + row * stride + at, mask=at < n, other=-float("inf"))
        higher = tl.maximum(m, tl.max(v, 0))
        total = total * tl.exp(m - higher) + tl.sum(tl.exp(v - higher), 0)
        m = higher
    tl.store(out + row, m + tl.log(total))
    # STUB
    # raise NotImplementedError("11.3: one pass, a maximum that may still rise")
    # END


# %% 11.4 | Right by luck | bug | level 2 | 15 min
# Rows are sorted by expert, and each expert multiplies its rows by its own number. A
# tile has M rows of one expert; the tables say for each tile its expert, its first
# row, and where the rows of its expert end. The result is right on every input we
# tried in the interpreter. On a GPU it is right on most days. Find the mistake.
# HINT: expert 0 has 3 rows, expert 1 has 5, and M is 4. Write down which rows the
#   tile of expert 0 stores, and what the next tile stores there.
# HINT: the interpreter runs tile after tile. Whoever stores last wins, and here
#   the last one happens to be the owner. Who is last on a GPU?
# HINT: a tile must not touch rows from `ends[tile]` on; `rows` is the end of all.
def grouped_scale_spec(x: Tensor, factor: Tensor, counts: Tensor) -> Tensor:
    """x: (rows, n), factor: (experts,), counts: (experts,) -> (rows, n)."""
    return x * torch.repeat_interleave(factor, counts)[:, None]


@triton.jit
def grouped_scale_kernel(
    x, factor, y, experts, firsts, ends, rows, n, M: tl.constexpr, SIZE: tl.constexpr
):
    tile, at = tl.program_id(0), tl.arange(0, SIZE)
    row = tl.load(firsts + tile) + tl.arange(0, M)
    # SOLUTION
    real = row < tl.load(ends + tile)
    # STUB
    # real = row < rows
    # END
    mask = real[:, None] & (at < n)[None, :]
    there = row[:, None] * n + at[None, :]
    v = tl.load(x + there, mask=mask, other=0.0)
    tl.store(y + there, v * tl.load(factor + tl.load(experts + tile)), mask=mask)


# %% 11.5 | Through the page table | fill | level 3 | 40 min
# Decoding: each sequence has one query (D numbers) and `length` cached vectors, which
# are keys and values at once, as MLA's latents are. They lie in pages of S: token t of
# sequence b is slot t % S of page tables[b, t // S]; a page is S * D numbers. A program
# is one sequence. Go page by page with an online softmax, and store D numbers. What
# lies behind a sequence's end, in its last page or in the table, may be anything,
# NaN as well. Lengths are at least 1; `most` is the width of the tables.
# HINT: for first in range(0, length, S): the page is
#   tl.load(tables + row * most + first // S), and the slots that exist are
#   first + tl.arange(0, S) < length.
# HINT: load a page as (S, D) with other=0.0; s = tl.sum(c * q[None, :], 1) * scale,
#   then tl.where(seen, s, -float("inf")). 0 times NaN is NaN, so mask the load, too.
# HINT: as in 11.3, and acc fades like the sum:
#   acc = acc * fade + tl.sum(p[:, None] * c, 0). The result is acc / total.
def paged_spec(
    query: Tensor, pages: Tensor, tables: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """query: (batch, D), pages: (blocks, S, D), tables: (batch, most) -> (batch, D)."""
    out = []
    for q, table, length in zip(query, tables, lengths.tolist(), strict=True):
        past = pages[table[: -(-length // pages.shape[1])]].flatten(0, 1)[:length]
        out.append((past @ q * scale).softmax(0) @ past)
    return torch.stack(out)


@triton.jit
def paged_kernel(
    query, pages, tables, lengths, out, most, scale, S: tl.constexpr, D: tl.constexpr
):
    # SOLUTION
    row, at, slot = tl.program_id(0), tl.arange(0, D), tl.arange(0, S)
    length = tl.load(lengths + row)
    q = tl.load(query + row * D + at)
    top = tl.full((), -float("inf"), tl.float32)
    total, acc = tl.zeros((), tl.float32), tl.zeros((D,), tl.float32)
    for first in range(0, length, S):
        page = tl.load(tables + row * most + first // S)
        seen = first + slot < length
        place = page * S * D + slot[:, None] * D + at[None, :]
        c = tl.load(pages + place, mask=seen[:, None], other=0.0)
        s = tl.where(seen, tl.sum(c * q[None, :], 1) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 0))
        p, fade = tl.exp(s - higher), tl.exp(top - higher)
        total = total * fade + tl.sum(p, 0)
        acc = acc * fade + tl.sum(p[:, None] * c, 0)
        top = higher
    tl.store(out + row * D + at, acc / total)
    # STUB
    # raise NotImplementedError("11.5: a page, its scores, and what fades")
    # END


# %% 11.6 | What the interpreter does not prove | measure | level 2 | 20 min
# `cast_kernel` copies float32 numbers into a tensor of another type; the cast happens
# in tl.store. A GPU rounds to the nearest bfloat16, as x.bfloat16() does. Run it here,
# on torch.rand(100_000), into bfloat16 and into float16. Which share of the numbers
# differs from PyTorch's cast, for either type? Into bfloat16, is a number that differs
# "nearer zero", "farther from zero" or "either" than PyTorch's? And by how many
# percent is the sum of all (taken in float64) off the sum of x, with its sign?
# HINT: cast_kernel[(triton.cdiv(len(x), 1024),)](x, y, len(x), 1024), with
#   y = torch.empty(len(x), dtype=torch.bfloat16). Then (y != x.bfloat16()).
# HINT: compare y.float().abs() with x.bfloat16().float().abs() where they differ.
# HINT: 100 * (y.double().sum() / x.double().sum() - 1). Whoever always cuts off is
#   too small every time, and that adds up; roundings cancel.
@triton.jit
def cast_kernel(x, y, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)


# SOLUTION
SHARE_BFLOAT16 = 0.5
SHARE_FLOAT16 = 0.0
DIRECTION = "nearer zero"
PERCENT = -0.26
# STUB
# SHARE_BFLOAT16 = None  # from 0 to 1, to two digits
# SHARE_FLOAT16 = None
# DIRECTION = None  # "nearer zero", "farther from zero" or "either"
# PERCENT = None  # to one digit, with its sign
# END
