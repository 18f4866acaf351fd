"""Checks of chapter 11's exercises. They run the reader's file, nothing else."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from r1lite.book.expect import close, expect, given

GUARD = 64  # numbers around a tensor; 7 in front of and behind outputs


def run(kernel: Any, grid: tuple[int, ...], *args: Any) -> None:
    """Launch a kernel; one that is still the stub stays TODO."""
    try:
        kernel[grid](*args)
    except Exception as error:
        if "NotImplementedError" in str(error):
            raise NotImplementedError from None
        raise


def output(*shape: int) -> tuple[Tensor, Tensor]:
    """A tensor of NaN between sevens, and all of it."""
    size = torch.Size(shape).numel()
    whole = torch.full((size + 2 * GUARD,), 7.0)
    inner = whole[GUARD : GUARD + size].fill_(torch.nan)
    return inner.view(shape), whole


def untouched(whole: Tensor, name: str) -> None:
    expect(
        bool((whole[:GUARD] == 7).all() and (whole[-GUARD:] == 7).all()),
        f"{name}: a store outside the tensor; what lies there belongs to somebody "
        "else. The store needs a mask, in a tile one of rows *and* of columns",
    )


def check_11_1(mine: ModuleType) -> None:
    given(mine.BLOCKS_A, mine.BLOCKS_B, mine.LIMIT_B, mine.OCCUPANCY_B)
    slips = {
        3: "BLOCKS_A: 169 registers are handed out as 176, the next multiple of 8",
        16: "BLOCKS_A: by warps alone; its registers do not suffice for 16",
        28: "BLOCKS_A: by shared memory alone",
        93: "BLOCKS_A: registers are for each *thread*; a warp has 32",
    }
    expect(mine.BLOCKS_A not in slips, slips.get(mine.BLOCKS_A, ""))
    expect(mine.BLOCKS_A == 2, "BLOCKS_A: 65,536 / (176 * 128), in whole blocks")
    slips = {
        8: "BLOCKS_B: by warps alone; look at the other two limits",
        4: "BLOCKS_B: by registers; is there shared memory for the fourth?",
        3.5625: "BLOCKS_B: there is no half block",
    }
    expect(mine.BLOCKS_B not in slips, slips.get(mine.BLOCKS_B, ""))
    expect(mine.BLOCKS_B == 3, "BLOCKS_B: the smallest of 8, 4 and 233,472 / 65,536")
    expect(
        mine.LIMIT_B == "shared",
        "LIMIT_B: warps would allow 8 blocks, registers 4; what allows 3?",
    )
    expect(
        mine.OCCUPANCY_B != 3 / 64,
        "OCCUPANCY_B counts blocks; a block of B has 8 warps",
    )
    close(mine.OCCUPANCY_B, 24 / 64, "OCCUPANCY_B: 3 blocks of 8 warps, of 64")


def check_11_2(mine: ModuleType) -> None:
    def answer(x: Tensor, bias: Tensor, m: int, n: int) -> Tensor:
        rows, columns = x.shape
        y, whole = output(rows, columns)
        grid = -(-rows // m), -(-columns // n)
        sizes = rows, columns, *x.stride(), m, n
        run(mine.bias_relu_kernel, grid, x, bias, y, *sizes)
        untouched(whole, "y")
        return y

    one = answer(torch.ones(2, 2), torch.zeros(2), 2, 2)
    expect(not one.isnan().all(), "y is as it was: nothing is stored")
    close(one, torch.ones(2, 2), "ones and no bias, one tile: all ones are asked")
    x, bias = torch.randn(8, 16), torch.randn(16)
    y = answer(x, bias, 8, 16)
    expect(
        not torch.equal(y, (x + bias)) and not torch.equal(y, x.relu()),
        "one tile: the bias or the relu is missing",
    )
    close(y, mine.bias_relu_spec(x, bias), "one tile that fits exactly")
    y = answer(x, bias, 4, 4)
    close(
        y,
        mine.bias_relu_spec(x, bias),
        "several tiles: a program's rows start at program_id(0) * M, its columns at "
        "program_id(1) * N",
    )
    x, bias = torch.randn(7, 13), torch.randn(13)
    wanted = mine.bias_relu_spec(x, bias)
    close(
        answer(x, bias, 4, 8),
        wanted,
        "7 x 13 in tiles of 4 x 8: tiles that reach over the edges",
    )
    room = torch.full((7, 20), torch.nan)
    room[:, :13] = x
    close(
        answer(room[:, :13], bias, 4, 8),
        wanted,
        "x is a view whose rows are 20 apart: use x_row",
    )
    close(
        answer(x.t().contiguous().t(), bias, 4, 8),
        wanted,
        "x is transposed: its columns are x_column apart; y is contiguous as ever",
    )


def check_11_3(mine: ModuleType) -> None:
    def answer(x: Tensor, size: int) -> Tensor:
        out, whole = output(len(x))
        given_ = x, out, x.stride(0), x.shape[1], size
        run(mine.logsumexp_kernel, (len(x),), *given_)
        untouched(whole, "out")
        expect(not out.isnan().all(), "out is NaN: nothing is stored, or NaN is")
        return out

    def right(x: Tensor, size: int, message: str) -> None:
        close(answer(x, size), mine.logsumexp_spec(x), message, atol=1e-4)

    x = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    sum_alone = (x - x.max()).exp().sum().log()
    expect(
        abs(answer(x, 4)[0] - sum_alone) > 1e-4,
        "m is missing: the result is m + log(l)",
    )
    right(x, 4, "four numbers in one piece")
    right(
        torch.tensor([[0.5, 1.0, -1.0]]) - 3,
        8,
        "a row shorter than SIZE: lanes beyond it must load -inf, 0 would count",
    )
    right(
        torch.tensor([[3.0, 2.0, 1.0, 0.0]]),
        2,
        "the largest number is in the first piece: is the second one added?",
    )
    right(
        torch.tensor([[0.0, 1.0, 2.0, 3.0]]),
        2,
        "a larger number comes in the second piece: the old sum must fade by "
        "e^(m - higher)",
    )
    right(
        torch.tensor([[-200.0, -201.0, -202.0, -203.0]]),
        2,
        "all numbers far below zero: m starts at -inf, not at 0",
    )
    right(
        torch.tensor([[100.0, 300.0, 50.0, 150.0]]),
        2,
        "e^89 does not fit into float32: m is the largest so far, not the piece's, "
        "and is subtracted before tl.exp",
    )
    wide = torch.full((5, 100), torch.nan)
    wide[:, :77] = torch.randn(5, 77) * 5
    right(wide[:, :77], 16, "rows of 77, 100 apart, in pieces of 16: stride and mask")


def _tables(counts: list[int], m: int) -> tuple[Tensor, ...]:
    """For each tile its expert, its first row and the end of its expert."""
    found, start = [], 0
    for expert, count in enumerate(counts):
        found += [(expert, start + i, start + count) for i in range(0, count, m)]
        start += count
    return tuple(torch.tensor(found).t().contiguous())


def check_11_4(mine: ModuleType) -> None:
    def answer(counts: list[int], order: slice, m: int = 4) -> tuple[Tensor, Tensor]:
        x, factor = torch.randn(sum(counts), 6), torch.arange(1.0, len(counts) + 1)
        y, whole = output(*x.shape)
        experts, firsts, ends = _tables(counts, m)
        tables = [
            t[torch.arange(len(t)).flip(0)[order]] for t in (experts, firsts, ends)
        ]
        sizes = len(x), 6, m, 8
        run(mine.grouped_scale_kernel, (len(tables[0]),), x, factor, y, *tables, *sizes)
        untouched(whole, "y")
        return y, mine.grouped_scale_spec(x, factor, torch.tensor(counts))

    y, wanted = answer([4, 8], slice(None))
    expect(not y.isnan().any(), "rows are missing: a tile leaves out rows of its own")
    close(y, wanted, "experts that fill their tiles: each row times its own number")
    y, wanted = answer([3, 5], slice(-1, None))  # the tile of expert 0 alone
    expect(
        not y[:3].isnan().any(),
        "the tile of expert 0 alone, of 3 rows: one of its own rows is missing",
    )
    expect(
        bool(y[3:].isnan().all()),
        "the tile of expert 0 alone stores rows of expert 1. In the interpreter the "
        "owner comes later and repairs it; on a GPU nobody knows who is last",
    )
    close(y[:3], wanted[:3], "the tile of expert 0 alone")
    y, wanted = answer([3, 5, 1, 9], slice(None))
    close(y, wanted, "the tiles in reverse order: no order may change the result")


def _paged(
    mine: ModuleType, lengths: list[int], scale: float = 1.0, in_order: bool = False
) -> tuple[Tensor, Tensor]:
    """(found, wanted); all that no sequence has written is NaN."""
    batch, s, d, most = len(lengths), 4, 8, 5
    pages = torch.full((batch * most + 4, s, d), torch.nan)[2:-2]
    every = torch.arange if in_order else torch.randperm
    tables = every(batch * most).view(batch, most)
    for table, length in zip(tables, lengths, strict=True):
        for t in range(length):
            pages[table[t // s], t % s] = torch.randn(d)
    query, n = torch.randn(batch, d) * 2, torch.tensor(lengths)
    out, whole = output(batch, d)
    sizes = most, scale, s, d
    run(mine.paged_kernel, (batch,), query, pages, tables, n, out, *sizes)
    untouched(whole, "out")
    return out, mine.paged_spec(query, pages, tables, n, scale)


def check_11_5(mine: ModuleType) -> None:
    found, wanted = _paged(mine, [4], in_order=True)
    expect(
        not found.isnan().all(),
        "a full page of four tokens: the result is NaN, or nothing is stored",
    )
    close(found, wanted, "a full page: a softmax over four scores", atol=1e-4)
    found, wanted = _paged(mine, [4], 0.3, in_order=True)
    close(found, wanted, "scale is a factor of the scores", atol=1e-4)
    found, wanted = _paged(mine, [3, 1], in_order=True)
    expect(
        not found.isnan().any(),
        "a page that is partly filled: unwritten slots hold NaN, and 0 * NaN is NaN. "
        "Mask the load",
    )
    close(
        found,
        wanted,
        "a page that is partly filled: slots behind the end get a score of -inf",
        atol=1e-4,
    )
    for _ in range(3):  # the largest score is on any page
        found, wanted = _paged(mine, [20, 17], in_order=True)
        close(
            found,
            wanted,
            "several pages in order: are total *and* acc faded by e^(top - higher), "
            "and is top moved on?",
            atol=1e-4,
        )
    found, wanted = _paged(mine, [18, 7, 12])
    expect(
        not found.isnan().any(),
        "pages out of order: pages of others and unwritten ones were read. The page is "
        "tables[row, first // S]",
    )
    close(found, wanted, "pages out of order: look them up in the table", atol=1e-4)


def check_11_6(mine: ModuleType) -> None:
    given(mine.SHARE_BFLOAT16, mine.SHARE_FLOAT16, mine.DIRECTION, mine.PERCENT)
    x, n = torch.rand(20_000), 20_000
    cast = {}
    for dtype in (torch.bfloat16, torch.float16):
        cast[dtype] = torch.empty(n, dtype=dtype)
        run(mine.cast_kernel, (-(-n // 4096),), x, cast[dtype], n, 4096)
    differs = {t: (y != x.to(t)).double().mean() for t, y in cast.items()}
    expect(
        mine.SHARE_BFLOAT16 < 0.9 or mine.SHARE_BFLOAT16 > 1,
        "SHARE_BFLOAT16: compared with x itself? Compare with x.bfloat16()",
    )
    expect(
        mine.SHARE_BFLOAT16 <= 1, "SHARE_BFLOAT16 is a share, from 0 to 1, no percent"
    )
    close(
        mine.SHARE_BFLOAT16,
        differs[torch.bfloat16],
        "SHARE_BFLOAT16: the share of (y != x.bfloat16())",
        atol=0.02,
    )
    close(
        mine.SHARE_FLOAT16,
        differs[torch.float16],
        "SHARE_FLOAT16: this cast the interpreter gets right; measure it",
        atol=0.02,
    )
    y = cast[torch.bfloat16]
    nearer = y.float().abs() <= x.bfloat16().float().abs()
    wanted = "nearer zero" if bool(nearer.all()) else "either"
    expect(
        wanted == mine.DIRECTION,
        "DIRECTION: look at y.float() - x.bfloat16().float() where it is not 0; has it "
        "ever another sign?",
    )
    percent = float(100 * (y.double().sum() / x.double().sum() - 1))
    expect(
        abs(mine.PERCENT + percent) > 0.03,
        "PERCENT: the sign; is the sum of y larger or smaller than that of x?",
    )
    close(
        mine.PERCENT,
        percent,
        "PERCENT: 100 * (sum of y / sum of x - 1), both sums in float64",
        atol=0.05,
    )
