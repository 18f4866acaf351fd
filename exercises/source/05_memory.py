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
# HINT: go through the five operations one by one: gate, up, silu, the elementwise
#   product, down. What does the gradient of each need?
# HINT: gate and up need x, which is one tensor. The result of down is needed by
#   nobody in here.
# HINT: a token keeps x (320) and four tensors of 192: gate(x), silu(gate(x)),
#   up(x), and their product. Four bytes each, 512 tokens.
# SOLUTION
BYTES_KEPT = 512 * 4 * (320 + 4 * 192)
# STUB
# BYTES_KEPT = None  # bytes
# END


# %% 5.2 | Once more, with gradients | fill | level 2 | 20 min
# The backward pass of a checkpoint. The forward pass called `run(x)` without
# gradients and kept three things: `run`, its input `x` (any shape) and `dice`, the
# state of torch's generator before the call. Now the gradient of the output
# arrives: `slope`, in the output's shape. Repeat the forward with gradients on,
# give every parameter inside `run` its gradient (added to .grad, as always), and
# return the gradient of x. The caller's x stays as it was, without a .grad; the
# generator is afterwards where it was before you were called; and it works when
# gradients are switched off outside, as they are in a backward pass.
# HINT: work on x.detach().requires_grad_(): it shares the numbers and starts a
#   graph of its own.
# HINT: `with torch.random.fork_rng(devices=[]):` puts the generator back at its
#   end. Inside, torch.set_rng_state(dice) makes dropout throw the same dice.
# HINT: inside `with torch.enable_grad():` call run on the detached copy, then
#   output.backward(slope); the copy's .grad is the answer.
def repeat(
    run: Callable[[Tensor], Tensor], x: Tensor, dice: Tensor, slope: Tensor
) -> Tensor:
    """The gradient of x, in x's shape."""
    # SOLUTION
    again = x.detach().requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.set_rng_state(dice)
        run(again).backward(slope)
    assert again.grad is not None
    return again.grad
    # STUB
    # raise NotImplementedError("5.2: set the dice, run again, send the slope back")
    # END


# %% 5.3 | Every token weighs the same | bug | level 2 | 10 min
# One optimizer step over several micro-batches, the way most first training loops
# have it. `mean_loss(batch)` is a micro-batch's mean over its trained tokens,
# `trained(batch)` how many those are, `total` how many the whole step has. It runs,
# the loss falls, and the gradient is not that of one large batch. Find the one
# mistake. It returns the mean loss of the step, a float.
# HINT: cut one batch into pieces with as many trained tokens each, and the function
#   is right. Cut it into pieces with 10 and 2, and it is not.
# HINT: a mean over 2 tokens may weigh only 2 / total in the step.
# HINT: multiply by trained(batch) and divide by total; the number of micro-batches
#   does not appear at all.
def one_step(
    batches: Iterable[object],
    mean_loss: Callable[[object], Tensor],
    trained: Callable[[object], int],
    total: int,
) -> float:
    """Add the step's gradient to the parameters; the mean loss over all tokens."""
    # SOLUTION
    mean = 0.0
    for batch in batches:
        loss = mean_loss(batch) * trained(batch) / total
        loss.backward()
        mean += loss.item()
    return mean
    # STUB
    # mean = 0.0
    # pieces = list(batches)
    # for batch in pieces:
    #     loss = mean_loss(batch) / len(pieces)
    #     loss.backward()
    #     mean += loss.item()
    # return mean
    # END


# %% 5.4 | One scale for each tile | fill | level 3 | 25 min
# Round x (rows, columns) to FP8 and back. Each tile of `high` x `wide` numbers has
# its own scale, its largest absolute value divided by LARGEST (448); tiles at the
# right and lower edge may be smaller. A tile of zeros stays zero. Returns the
# rounded numbers in x's shape, float32: code times scale. A number is rounded by
# `(number / scale).to(E4M3)`, and `.to(torch.float32)` reads the code.
# HINT: loops over the tiles are fine here; slices that reach over the edge of a
#   tensor are cut by Python.
# HINT: the largest is of absolute values. A scale of 0 would give 0 / 0: use 1.
# HINT: for i in range(0, rows, high), for j in range(0, columns, wide): take
#   x[i : i + high, j : j + wide], its scale, write code * scale into the result.
def round_tiles(x: Tensor, high: int, wide: int) -> Tensor:
    """x (rows, columns), rounded to E4M3 with a scale for each tile."""
    # SOLUTION
    out = torch.empty_like(x, dtype=torch.float32)
    for i in range(0, x.shape[0], high):
        for j in range(0, x.shape[1], wide):
            tile = x[i : i + high, j : j + wide]
            scale = tile.abs().max() / LARGEST
            scale = torch.where(scale > 0, scale, 1.0)
            code = (tile / scale).to(E4M3)
            out[i : i + high, j : j + wide] = code.to(torch.float32) * scale
    return out
    # STUB
    # raise NotImplementedError("5.4: a scale a tile, then the cast")
    # END


# %% 5.5 | Two products of the backward pass | fill | level 3 | 20 min
# The forward pass was y = x W^T, with x (tokens, in) and w (out, in). Now dy
# (tokens, out) arrives. Return dx (tokens, in) and dw (out, in), both products in
# FP8 as V3 does them: `rows(a)` rounds any matrix in tiles of 1 x 128 along its
# last dimension, `blocks(a)` rounds a weight in 128 x 128. In every product the
# tiles of an activation or a gradient lie along the direction that is summed.
# HINT: without FP8: dx = dy @ w and dw = dy.t() @ x. Which direction is summed in
#   each?
# HINT: dx sums over the outputs, the last dimension of dy: rows(dy) is right. dw
#   sums over the tokens, the first dimension of dy and of x.
# HINT: to round along the first dimension, transpose, round, and transpose back:
#   rows(x.t()).t().
def fp8_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    rows: Callable[[Tensor], Tensor],
    blocks: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """dx (tokens, in) and dw (out, in)."""
    # SOLUTION
    dx = rows(dy) @ blocks(w)
    dw = rows(dy.t()) @ rows(x.t()).t()
    return dx, dw
    # STUB
    # raise NotImplementedError("5.5: two products, each with its own tiles")
    # END


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
# HINT: x.float() does all of it; use float64 for 10.0 ** p if you like, and let p
#   go up to 12.
# HINT: until the cliff the error is about 0.05, whatever the outlier. What does
#   that say about the width of the steps?
# HINT: 57344 over the smallest normal number of E5M2, 6.1e-5, is about 10^9: an
#   outlier that many times larger than the others pushes them below it.
# SOLUTION
FIRST_POWER = 10
WHY = "range"
# STUB
# FIRST_POWER = None  # a whole number
# WHY = None  # "step", "range" or "overflow"
# END
