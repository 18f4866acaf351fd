"""Checks of chapter 12's exercises. They run the reader's file, nothing else."""

from types import ModuleType

import torch
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape


def check_12_1(mine: ModuleType) -> None:
    given(mine.BYTES_A, mine.BITS_A, mine.BITS_B)
    weights = 3 * 2048 * 7168
    groups, blocks = weights // 128, weights // 128**2
    right = weights // 2 + 4 * groups
    slips = {
        8 * right: "BYTES_A is a number of bits; eight make a byte",
        weights // 2: "BYTES_A counts the codes alone: scales and zero points are "
        "stored as well",
        weights // 2 + 2 * groups: "BYTES_A: a group has a scale *and* a zero point, "
        "two bytes each",
        weights // 2 + 8 * groups: "BYTES_A: bfloat16 has two bytes, not four",
        weights // 2 + 4 * blocks: "BYTES_A: in (a) a group is 128 weights of one row; "
        "blocks of 128 x 128 are (b)",
        right // 3: "BYTES_A is one matrix; an expert has three",
        weights + 4 * groups: "BYTES_A: two 4-bit codes share a byte",
    }
    expect(mine.BYTES_A not in slips, slips.get(mine.BYTES_A, ""))
    expect(
        right == mine.BYTES_A,
        f"{mine.BYTES_A:,} bytes is not it; count codes, scales and zero points of one "
        "group of 128 and multiply by the number of groups",
    )
    expect(mine.BITS_A != 4, "BITS_A leaves out the scale and the zero point")
    close(mine.BITS_A, 8 * right / weights, "BITS_A: BYTES_A in bits, for each weight")
    expect(mine.BITS_B != 8, "BITS_B leaves out the scale, small as it is")
    close(
        mine.BITS_B,
        8 + 32 / 128**2,
        "BITS_B: a block has 128 x 128 weights and 32 bits of scale",
        atol=1e-7,
    )


def check_12_2(mine: ModuleType) -> None:
    f = mine.quantise_groups
    pair = f(torch.randn(3, 8), 8, 4)
    expect(
        isinstance(pair, tuple) and len(pair) == 2,
        "return codes and scales, in this order",
    )
    shape(pair[0], (3, 8), "the codes")
    shape(pair[1], (3, 2), "the scales, one for each group of each row")
    expect(pair[0].dtype == torch.int8, f"the codes are {pair[0].dtype}, not int8")
    codes, scales = f(torch.tensor([[7.0, 3.0, -1.0, 0.0]]), 4, 4)
    close(
        scales,
        [[1.0]],
        "four bits, symmetric: the largest code is 7, so 7, 3, -1, 0 has scale 1",
    )
    close(codes, [[7, 3, -1, 0]], "with scale 1 whole numbers are their own codes")
    _, scales = f(torch.tensor([[-14.0, 3.0, -1.0, 0.0]]), 4, 4)
    close(scales, [[2.0]], "the largest *absolute* value counts: -14 gives scale 2")
    loud = torch.tensor([[100.0, 50.0, 0.01, 0.02], [1.0, 2.0, 3.0, 4.0]])
    _, scales = f(loud, 8, 2)
    close(
        scales * 127,
        [[100.0, 0.02], [2.0, 4.0]],
        "a loud group or row has changed the scale of another: take the largest over "
        "the last dimension only",
    )
    quiet = f(torch.tensor([[0.0, 0.0, 1.0, -1.0]]), 8, 2)
    expect(
        not quiet[1].isnan().any() and quiet[0][0, :2].tolist() == [0, 0],
        "a group of zeros must have codes 0: its scale is 1, not 0",
    )
    close(quiet[1][0, 0], 1.0, "the scale of a group of zeros is 1")
    w = torch.randn(16, 24) * 10 ** torch.randn(16, 24)
    for bits in (8, 4, 3):
        codes, scales = f(w, bits, 8)
        step = scales.repeat_interleave(8, 1)
        gap = (codes * step - w).abs()
        expect(
            bool((gap <= step * 0.5001).all()),
            "a weight is more than half a step from its code: round to the *nearest* "
            "whole number",
        )
        close(codes, _slow_codes(w, bits, 8), f"random weights at {bits} bits differ")
    expect(
        torch.equal(f(w * 4, 8, 8)[0], f(w, 8, 8)[0]),
        "four times the weights must have the same codes",
    )


def _slow_codes(w: Tensor, bits: int, group: int) -> Tensor:
    """Group by group."""
    out = torch.zeros_like(w)
    for row, found in zip(w, out, strict=True):
        for start in range(0, len(row), group):
            some = row[start : start + group]
            scale = some.abs().max() / (2 ** (bits - 1) - 1)
            found[start : start + group] = (some / scale).round()
    return out


def check_12_3(mine: ModuleType) -> None:
    pack = mine.pack_nibbles
    two = pack(torch.tensor([[3, 5]]))
    shape(two, (1, 1), "two codes in one byte")
    expect(two.dtype == torch.uint8, f"the bytes are {two.dtype}, not uint8")
    expect(
        two.item() != 3 * 16 + 5,
        "3, 5 became 0x35: the even index belongs in the low half, 0x53",
    )
    close(two, [[3 + 16 * 5]], "3 and 5 make the byte 3 + 16 * 5 = 83")
    four = pack(torch.tensor([1, 2, 3, 4]))
    expect(
        four.tolist() != [1 + 16 * 3, 2 + 16 * 4],
        "codes 0 and 2 share a byte: it is neighbours that do",
    )
    close(four, [1 + 16 * 2, 3 + 16 * 4], "1, 2, 3, 4 make 0x21 and 0x43")
    large = pack(torch.tensor([15, 15, 0, 8], dtype=torch.int8))
    close(
        large,
        [255, 128],
        "codes that come as int8: 8 << 4 does not fit there, go to uint8 first",
    )
    codes = torch.randint(16, (3, 4, 10))
    packed = pack(codes)
    shape(packed, (3, 4, 5), "stacked experts: only the last dimension is halved")
    back = torch.stack((packed % 16, packed // 16), -1).flatten(-2)
    close(back, codes, "what was packed does not come back")
    try:
        pack(torch.zeros(2, 3, dtype=torch.uint8))
    except ValueError:
        return
    except RuntimeError:
        pass
    expect(False, "three codes are no whole number of bytes: raise a ValueError")


def check_12_4(mine: ModuleType) -> None:
    f = mine.quantise_tokens
    x = torch.randn(5, 16)
    codes, scales = f(x)
    shape(codes, (5, 16), "the codes")
    expect(codes.dtype == torch.int8, f"the codes are {codes.dtype}, not int8")
    expect(
        torch.as_tensor(scales).numel() != 16,
        "a scale for each input; a product over the inputs could not take it out again",
    )
    own, _ = f(x[:1])
    crowd = x.clone()
    crowd[1] *= 1000
    expect(
        torch.equal(f(crowd)[0][:1], own),
        "the codes of a token depend on another token of the batch: each token has "
        "its own scale",
    )
    shape(scales, (5, 1), "the scales")
    close(scales, x.abs().amax(1, keepdim=True) / 127, "a scale is largest / 127")
    zeros, sizes = f(torch.zeros(2, 4))
    expect(
        not sizes.isnan().any() and not zeros.any() and bool((sizes > 0).all()),
        "a token of zeros: its scale must not be 0, or 0 / 0 is computed",
    )
    gap = (codes * scales - x).abs() / scales
    expect(gap.max() <= 0.5001, "round to the nearest code, do not cut off")
    expect(codes.min() < 0, "the sign is gone: abs() is for the scale alone")


def check_12_5(mine: ModuleType) -> None:
    f = mine.gptq_column
    # H = [[2, 1], [1, 1]]: its inverse is [[1, -1], [-1, 2]] = U^T U.
    upper = torch.tensor([[1.0, -1.0], [0.0, 1.0]])
    w = torch.tensor([[0.4, 0.3]])
    new = f(w, torch.tensor([0.0]), upper, 0)
    shape(new, (1, 2), "the new weight")
    expect(
        torch.equal(w, torch.tensor([[0.4, 0.3]])),
        "the caller's w has changed: work on a copy",
    )
    close(new[0, 0], 0.0, "column j is now `rounded`")
    expect(
        abs(new[0, 1] - 0.3) > 1e-6,
        "the free column did not move: it has to make up for the error",
    )
    expect(
        abs(new[0, 1] + 0.1) > 1e-6,
        "the free column moved the wrong way: 0.4 is missing in the first, U is -1 "
        "there, so 0.4 is *added*",
    )
    close(new, [[0.0, 0.7]], "by hand: e = 0.4, and the second becomes 0.3 + 0.4 = 0.7")
    inputs = torch.randn(60, 6, dtype=torch.float64)
    inputs[:, 1:] += inputs[:, :1] * 0.8  # inputs that resemble each other
    inverse = (inputs.t() @ inputs).inverse()
    upper = torch.linalg.cholesky(inverse, upper=True)
    start = torch.randn(4, 6, dtype=torch.float64)
    w = start.clone()
    for j in range(6):
        before = w.clone()
        w = f(w, w[:, j].round(), upper, j)
        shape(w, (4, 6), f"after column {j}: the new weight")
        close(w[:, :j], before[:, :j], f"column {j}: columns before it have changed")
        first = "divide the error by U[j, j]"
        later = "column 0 is right, later ones are not: take row j of U itself"
        close(
            w,
            _best(inputs, start, w, j),
            f"column {j}: the free columns do not make the outputs as close as they "
            f"could; {later if j else first}",
            atol=1e-6,
        )


def _best(x: Tensor, start: Tensor, w: Tensor, column: int) -> Tensor:
    """Least squares: the free columns that bring x w^T nearest to x start^T."""
    held, free = slice(0, column + 1), slice(column + 1, None)
    best = w.clone()
    if column + 1 < w.shape[1]:
        missing = x @ start.t() - x[:, held] @ w[:, held].t()
        best[:, free] = torch.linalg.lstsq(x[:, free], missing).solution.t()
    return best


def check_12_6(mine: ModuleType) -> None:
    said = {8: mine.BEST_8, 4: mine.BEST_4, 3: mine.BEST_3}
    given(*said.values(), mine.WHY)
    w = torch.randn(2048, 128)
    for bits, best in said.items():
        last = 2 ** (bits - 1) - 1
        error = {}
        for tenths in range(10, 2, -1):
            scale = w.abs().amax(1, keepdim=True) * tenths / 10 / last
            back = (w / scale).round().clamp(-last, last) * scale
            error[tenths] = float((back - w).norm() / w.norm())
        expect(
            any(abs(best - t / 10) < 1e-6 for t in error),
            f"BEST_{bits} is one of 1.0, 0.9, ... 0.3",
        )
        lowest = min(error, key=lambda t: error[t])
        own = error[round(best * 10)]
        if best > lowest / 10 + 1e-6:
            why = "cutting more off still lowers it"
        else:
            why = "too much is cut off there"
        expect(
            round(best * 10) == lowest,
            f"at {bits} bits a shrink of {best} has an error of {own:.3f}; {why}. Is "
            f"the last code {last}, and are codes beyond it clamped?",
        )
    expect(
        mine.WHY != "edges",
        "the largest numbers are rounded no worse than others, half a step at most; "
        "and shrinking cuts exactly those off",
    )
    expect(
        mine.WHY != "overflow",
        "nothing overflows at shrink 1: the largest number has the last code",
    )
    expect(mine.WHY == "steps", 'WHY is one of "edges", "steps", "overflow"')
