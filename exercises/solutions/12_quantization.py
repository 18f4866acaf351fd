"""Exercises of chapter 12: fewer bits, and what they cost."""

import torch
from torch import Tensor


# %% 12.1 | What an expert weighs | predict | level 1 | 10 min
# One routed expert of DeepSeek-V3 has three matrices: gate and up, each 2048 x 7168
# (out x in), and down, 7168 x 2048. Two ways to store them. (a) Four bits a weight,
# two to a byte, in groups of 128 along the input; each group has a scale and a zero
# point, both bfloat16. (b) V3's own: FP8, one byte a weight, and a float32 scale for
# each block of 128 x 128. How many bytes is the expert in (a)? And how many bits
# does a weight cost in (a) and in (b), scales and zero points included?
BYTES_A = 3 * 2048 * 7168 * (64 + 2 + 2) // 128
BITS_A = 8 * (64 + 2 + 2) / 128
BITS_B = 8 * (128 * 128 + 4) / (128 * 128)


# %% 12.2 | Every group its own scale | fill | level 2 | 20 min
# Round w (rows, inputs) to whole numbers of `bits` bits, symmetric around zero. Each
# `group` neighbours of a row share a scale: their largest absolute value divided by
# the largest code, 2^(bits-1) - 1 (127 for 8 bits, 7 for 4). The code is the nearest
# whole number to weight / scale. A group of zeros has scale 1 and codes 0. Return
# the codes, int8, in w's shape, and the scales (rows, inputs / group), float32.
# `group` divides the inputs.
def quantise_groups(w: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Codes (rows, inputs) int8 and scales (rows, inputs / group) float32."""
    groups = w.float().unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1)
    scales = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    codes = (groups / scales.unsqueeze(-1)).round().to(torch.int8)
    return codes.flatten(-2), scales


# %% 12.3 | Two codes in a byte | fill | level 1 | 15 min
# A 4-bit code that lies in an int8 saves nothing. Pack `codes` (..., inputs), whole
# numbers from 0 to 15 of any integer dtype, into (..., inputs / 2) uint8. Byte i of
# a row holds code 2i in its low half and code 2i + 1 in its high half. An odd number
# of codes cannot be packed: raise a ValueError that says so.
def pack_nibbles(codes: Tensor) -> Tensor:
    """(..., inputs) of 0 to 15 -> (..., inputs / 2) uint8."""
    if codes.shape[-1] % 2:
        raise ValueError(f"{codes.shape[-1]} codes, an odd number")
    codes = codes.to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


# %% 12.4 | Your neighbour's outlier | bug | level 2 | 10 min
# Dynamic int8 rounds the activations as well, when they arrive. This is how many
# first versions do it. Alone, a prompt gets the right answer. In a batch with other
# people's prompts it gets worse, and not always. Find the one mistake. x is (tokens,
# inputs); returned are codes, int8, in x's shape and the scales, which x is about
# codes * scales of. A token of zeros has codes 0 and must not become NaN.
def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (tokens, inputs) int8 and scales (tokens, 1) float32."""
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    scales = torch.where(largest == 0, 1.0, largest / 127)
    return (wide / scales).round().clamp(-127, 127).to(torch.int8), scales


# %% 12.5 | One column of GPTQ | fill | level 3 | 25 min
# GPTQ rounds a weight column by column and lets the columns that are still free make
# up for each error. Column `column` of w (rows, inputs) has just been rounded to
# `rounded` (rows,). `upper` (inputs, inputs) is the upper Cholesky factor U of the
# inverse of H = X^T X, so that H^-1 = U^T U, with X the calibration inputs. With
#     e = (w[:, j] - rounded) / U[j, j]
# the free columns k > j become w[:, k] - e U[j, k]. Return the new w: column j is
# `rounded`, columns before it are as they were. Do not change the caller's w.
def gptq_column(w: Tensor, rounded: Tensor, upper: Tensor, column: int) -> Tensor:
    """The new w (rows, inputs) after column `column` was rounded."""
    new, j = w.clone(), column
    error = (w[:, j] - rounded) / upper[j, j]
    new[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    new[:, j] = rounded
    return new


# %% 12.6 | Cut the largest off? | measure | level 2 | 20 min
# A scale that is chosen by the largest number loses nothing at the edge. Is that the
# best scale? Take torch.randn(2048, 128), one symmetric scale a row: `shrink` times
# the row's largest absolute value, divided by 2^(bits-1) - 1. Codes beyond the largest
# are clamped to it. Measure the relative error (norm of the difference over norm of
# the numbers) for shrink 1.0, 0.9, ... 0.3. Report which shrink is best at 8, at 4
# and at 3 bits, and why the answer changes:
#   "edges":    with few bits the largest numbers are rounded worst;
#   "steps":    a smaller scale is a finer step for everyone, and with few bits that
#               is worth more than the few numbers that are cut off;
#   "overflow": with few bits the codes overflow unless the scale shrinks.
BEST_8 = 1.0
BEST_4 = 0.9
BEST_3 = 0.7
WHY = "steps"
