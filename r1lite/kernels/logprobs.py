"""Log-probabilities of given tokens without ever holding the logits.

    logits z = h W^T / T,  L = log sum_v e^(z_v),  logp = z_target - L
    dz = g (onehot - e^(z - L)) / T,  dh = dz W,  dW = dz^T h

The logits are the largest tensor of a language model: 4,096 tokens times 129,280 are
2 GB in float32, and their gradient as much again. Here a slice of rows lives at a
time; backward makes it again from L, so that any gradient can come from above: the
mean of a cross-entropy, or GRPO's weight of each token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels.choose import jit, power_of_two, tl, use_triton

NUMBERS = 1 << 24  # logits alive at a time: 64 MB in float32
BLOCK = 4096  # of the vocabulary, at most


def token_logprobs_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """What `token_logprobs` computes, all logits at once."""
    logits = F.linear(hidden, weight).float() / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


@jit
def _normaliser(z, targets, logp, lse, stride, n, scale, SIZE: tl.constexpr):
    """L and log-probability of one row, in one pass with a running maximum."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, n, SIZE):
        at = first + tl.arange(0, SIZE)
        v = tl.load(z + row * stride + at, mask=at < n, other=float("-inf"))
        v = v.to(tl.float32) * scale
        higher = tl.maximum(top, tl.max(v, 0))
        base = tl.where(higher > float("-inf"), higher, 0.0)  # all were -inf
        total = total * tl.exp(top - base) + tl.sum(tl.exp(v - base), 0)
        top = higher
    level = top + tl.log(total)
    target = tl.load(targets + row)
    known = (target >= 0) & (target < n)
    picked = tl.load(z + row * stride + target, mask=known, other=float("nan"))
    tl.store(logp + row, picked.to(tl.float32) * scale - level)
    tl.store(lse + row, level)


@jit
def _slope(z, targets, lse, grad, stride, n, scale, SIZE: tl.constexpr):
    """Writes the gradient of a row over its logits."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    v = tl.load(z + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp(v * scale - tl.load(lse + row))
    hit = (at == tl.load(targets + row)).to(tl.float32)
    slope = tl.load(grad + row) * (hit - p) * scale
    tl.store(z + row * stride + at, slope, mask=inside)


def _slices(rows: int, vocab: int) -> list[slice]:
    size = max(1, NUMBERS // vocab)
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


@torch.library.custom_op("r1lite::token_logprobs", mutates_args=())
def _token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    rows, vocab = len(hidden), len(weight)
    logp = hidden.new_empty(rows, dtype=torch.float32)
    lse = torch.empty_like(logp)
    size = min(BLOCK, power_of_two(vocab))
    for part in _slices(rows, vocab):
        z = hidden[part] @ weight.T
        given = (z, targets[part], logp[part], lse[part], z.stride(0), vocab)
        _normaliser[(len(z),)](*given, 1.0 / temperature, size)
    return logp, lse


@_token_logprobs.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logp = hidden.new_empty(len(hidden), dtype=torch.float32)
    return logp, torch.empty_like(logp)


@torch.library.custom_op("r1lite::token_logprobs_backward", mutates_args=())
def _token_logprobs_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    vocab = len(weight)
    dh = torch.empty_like(hidden)
    dw = torch.zeros_like(weight, dtype=torch.float32)
    size = min(BLOCK, power_of_two(vocab))
    for part in _slices(len(hidden), vocab):
        z = hidden[part] @ weight.T
        grid = len(z), -(-vocab // size)
        given = (z, targets[part], lse[part], grad[part], z.stride(0), vocab)
        _slope[grid](*given, 1.0 / temperature, size)
        dh[part] = z @ weight
        dw += z.T @ hidden[part]
    return dh, dw.to(weight.dtype)


@_token_logprobs_backward.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, targets, ctx.temperature = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = _token_logprobs_backward(
        grad.contiguous(), *ctx.saved_tensors, ctx.temperature
    )
    return *found, None, None


_token_logprobs.register_autograd(_gradient, setup_context=_keep)


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """log p(target) of each row; cross-entropy is minus their mean.

    Args:
        hidden: (tokens, n); weight: (vocab, n), the head's; targets: (tokens,) int64.

    Returns:
        (tokens,) float32. A kernel gives NaN for a target outside the vocabulary.

    Raises:
        R1Error: shapes that do not fit, or a temperature that is not above 0.
    """
    if hidden.shape[1:] != weight.shape[1:] or targets.shape != hidden.shape[:1]:
        raise R1Error(
            f"token_logprobs: hidden {tuple(hidden.shape)}, weight "
            f"{tuple(weight.shape)} and targets {tuple(targets.shape)}; give "
            "(tokens, n), (vocab, n) and (tokens,)"
        )
    if temperature <= 0:
        raise R1Error(f"temperature: {temperature} divides nothing; give above 0")
    if not use_triton(hidden):
        return token_logprobs_reference(hidden, weight, targets, temperature)
    hidden, weight, targets = (t.contiguous() for t in (hidden, weight, targets))
    return _token_logprobs(hidden, weight, targets, temperature)[0]
