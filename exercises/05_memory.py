"""Exercises of chapter 5: what is kept, what is repeated, what is rounded."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from r1lite.precision.fp8 import E4M3, LARGEST


# %% 5.1 | What one expert keeps | predict | level 1 | 10 min
# A SwiGLU, down(silu(gate(x)) * up(x)), of the size of `micro`: hidden 320, inner
# 192. It runs on 512 tokens in float32, gradients on. How many bytes does autograd
# keep until the backward pass? Weights do not count, a tensor that two operations
# need counts once. A product keeps the factor that a weight is multiplied with;
# silu keeps its input; an elementwise product keeps both factors.
BYTES_KEPT = None  # bytes


# %% 5.2 | Once more, with gradients | fill | level 2 | 20 min
# The backward pass of a checkpoint. The forward pass called `run(x)` without
# gradients and kept three things: `run`, its input `x` (any shape) and `dice`, the
# state of torch's generator before the call. Now the gradient of the output
# arrives: `slope`, in the output's shape. Repeat the forward with gradients on,
# give every parameter inside `run` its gradient (added to .grad, as always), and
# return the gradient of x. The caller's x stays as it was, without a .grad; the
# generator is afterwards where it was before you were called; and it works when
# gradients are switched off outside, as they are in a backward pass.
def repeat(
    run: Callable[[Tensor], Tensor], x: Tensor, dice: Tensor, slope: Tensor
) -> Tensor:
    """The gradient of x, in x's shape."""
    raise NotImplementedError("5.2: set the dice, run again, send the slope back")


# %% 5.3 | Every token weighs the same | bug | level 2 | 10 min
# One optimizer step over several micro-batches, the way most first training loops
# have it. `mean_loss(batch)` is a micro-batch's mean over its trained tokens,
# `trained(batch)` how many those are, `total` how many the whole step has. It runs,
# the loss falls, and the gradient is not that of one large batch. Find the one
# mistake. It returns the mean loss of the step, a float.
def one_step(
    batches: Iterable[object],
    mean_loss: Callable[[object], Tensor],
    trained: Callable[[object], int],
    total: int,
) -> float:
    """Add the step's gradient to the parameters; the mean loss over all tokens."""
    mean = 0.0
    pieces = list(batches)
    for batch in pieces:
        loss = mean_loss(batch) / len(pieces)
        loss.backward()
        mean += loss.item()
    return mean


# %% 5.4 | One scale for each tile | fill | level 3 | 25 min
# Round x (rows, columns) to FP8 and back. Each tile of `high` x `wide` numbers has
# its own scale, its largest absolute value divided by LARGEST (448); tiles at the
# right and lower edge may be smaller. A tile of zeros stays zero. Returns the
# rounded numbers in x's shape, float32: code times scale. A number is rounded by
# `(number / scale).to(E4M3)`, and `.to(torch.float32)` reads the code.
def round_tiles(x: Tensor, high: int, wide: int) -> Tensor:
    """x (rows, columns), rounded to E4M3 with a scale for each tile."""
    raise NotImplementedError("5.4: a scale a tile, then the cast")


# %% 5.5 | Two products of the backward pass | fill | level 3 | 20 min
# The forward pass was y = x W^T, with x (tokens, in) and w (out, in). Now dy
# (tokens, out) arrives. Return dx (tokens, in) and dw (out, in), both products in
# FP8 as V3 does them: `rows(a)` rounds any matrix in tiles of 1 x 128 along its
# last dimension, `blocks(a)` rounds a weight in 128 x 128. In every product the
# tiles of an activation or a gradient lie along the direction that is summed.
def fp8_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    rows: Callable[[Tensor], Tensor],
    blocks: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """dx (tokens, in) and dw (out, in)."""
    raise NotImplementedError("5.5: two products, each with its own tiles")


# %% 5.6 | How much a wider exponent carries | measure | level 2 | 15 min
# E5M2 has one bit of exponent more than E4M3 and one of fraction less; its largest
# number is 57344. Take torch.randn(64, 256), set number [0, 0] to 10^p, divide by
# one scale for the whole matrix (largest / 57344), cast to torch.float8_e5m2 and
# back, and multiply by the scale. Measure the relative error of all rows but the
# first: norm of the difference over norm. Report the smallest whole p at which it
# is above 0.1 (E4M3 needs p = 5), and name what happened to the others:
#   "step":     the steps between the numbers are wider near an outlier;
#   "range":    the others fall below the smallest normal number, then to zero;
#   "overflow": the outlier turns into infinity.
FIRST_POWER = None  # a whole number
WHY = None  # "step", "range" or "overflow"
