"""Tokens to expert order and back: gathers whose backward passes are gathers too.

    rows_i = x[order_i // K],  y_t = sum over k of w_tk * done[place_tk]

`order` sorts the T * K picks by expert, `place` is its inverse. Autograd's backward of
an index is a scatter with atomic adds; knowing both permutations, each token collects
its K rows itself, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.kernels.choose import jit, power_of_two, tl, use_triton


def permute_reference(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """x: (T, n), order: (T * K,) -> (T * K, n)."""
    return x[order // top_k]


def unpermute_reference(done: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """done: (T * K, n), place: (T * K,), weights: (T, K) -> (T, n)."""
    picks = done[place].view(*weights.shape, done.shape[1])
    return (picks * weights.to(done.dtype).unsqueeze(-1)).sum(1)


@jit
def _gather(x, y, order, x_row, n, top_k, SIZE: tl.constexpr):
    """Row i of y is x's row of the token that pick order[i] belongs to."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    token = tl.load(order + row) // top_k
    v = tl.load(x + token * x_row + at, mask=at < n, other=0.0)
    tl.store(y + row * n + at, v, mask=at < n)


@jit
def _collect(
    done, place, weights, y, n, top_k, WEIGHED: tl.constexpr, SIZE: tl.constexpr
):
    """Row t of y is the (weighted) sum of the K rows that belong to token t."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for k in range(top_k):
        row = tl.load(place + token * top_k + k)
        v = tl.load(done + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        if WEIGHED:
            v = v * tl.load(weights + token * top_k + k).to(tl.float32)
        total += v
    tl.store(y + token * n + at, total, mask=at < n)


@jit
def _spread(dy, done, place, weights, ddone, dweights, n, top_k, SIZE: tl.constexpr):
    """Gradients of pick (t, k): ddone[place] = w dy_t, dw = done[place] . dy_t."""
    pick = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    row = tl.load(place + pick)
    g = tl.load(dy + pick // top_k * n + at, mask=at < n, other=0.0).to(tl.float32)
    v = tl.load(done + row * n + at, mask=at < n, other=0.0).to(tl.float32)
    w = tl.load(weights + pick).to(tl.float32)
    tl.store(ddone + row * n + at, w * g, mask=at < n)
    tl.store(dweights + pick, tl.sum(v * g))


@torch.library.custom_op("r1lite::permute", mutates_args=())
def _permute(x: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
    y = x.new_empty(len(order), x.shape[1])
    if y.numel():
        size = power_of_two(x.shape[1])
        _gather[(len(order),)](x, y, order, x.stride(0), x.shape[1], top_k, size)
    return y


@_permute.register_fake
def _(x: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
    return x.new_empty(len(order), x.shape[1])


@torch.library.custom_op("r1lite::collect", mutates_args=())
def _collected(done: Tensor, place: Tensor, top_k: int) -> Tensor:
    y = done.new_empty(len(place) // top_k, done.shape[1])
    if y.numel():
        sizes = done.shape[1], top_k, False, power_of_two(done.shape[1])
        _collect[(len(y),)](done, place, place, y, *sizes)
    return y


@_collected.register_fake
def _(done: Tensor, place: Tensor, top_k: int) -> Tensor:
    return done.new_empty(len(place) // top_k, done.shape[1])


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, place, ctx.top_k = inputs
    ctx.save_for_backward(place)


def _gradient_permute(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (place,) = ctx.saved_tensors
    return _collected(dy.contiguous(), place, ctx.top_k), None, None, None


_permute.register_autograd(_gradient_permute, setup_context=_keep_places)


@torch.library.custom_op("r1lite::unpermute", mutates_args=())
def _unpermute(done: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    y = done.new_empty(len(weights), done.shape[1])
    if y.numel():
        sizes = done.shape[1], weights.shape[1], True, power_of_two(done.shape[1])
        _collect[(len(y),)](done, place, weights, y, *sizes)
    return y


@_unpermute.register_fake
def _(done: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    return done.new_empty(len(weights), done.shape[1])


@torch.library.custom_op("r1lite::unpermute_backward", mutates_args=())
def _unpermute_backward(
    dy: Tensor, done: Tensor, place: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    ddone, dweights = done.new_empty(done.shape), weights.new_empty(weights.shape)
    if ddone.numel():
        sizes = done.shape[1], weights.shape[1], power_of_two(done.shape[1])
        _spread[(len(place),)](dy, done, place, weights, ddone, dweights, *sizes)
    return ddone, dweights


@_unpermute_backward.register_fake
def _(
    dy: Tensor, done: Tensor, place: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    return done.new_empty(done.shape), weights.new_empty(weights.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient_unpermute(ctx: Any, dy: Tensor) -> tuple[Tensor, None, Tensor]:
    ddone, dweights = _unpermute_backward(dy.contiguous(), *ctx.saved_tensors)
    return ddone, None, dweights


_unpermute.register_autograd(_gradient_unpermute, setup_context=_keep)


def permute(x: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
    """Each token's row once for each of its K picks, sorted by expert.

    Args:
        x: (T, n); order: (T * K,) int64, the picks sorted by expert; place: its
            inverse.

    Returns:
        (T * K, n).
    """
    if not use_triton(x):
        return permute_reference(x, order, top_k)
    x = x if x.stride(-1) == 1 else x.contiguous()
    result: Tensor = _permute(x, order.contiguous(), place.contiguous(), top_k)
    return result


def unpermute(done: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of each token's K rows.

    Args:
        done: (T * K, n), sorted by expert; place: (T * K,) int64, where pick t * K + k
            stands in it; weights: (T, K).

    Returns:
        (T, n).
    """
    if not use_triton(done):
        return unpermute_reference(done, place, weights)
    given = (t.contiguous() for t in (done, place, weights))
    result: Tensor = _unpermute(*given)
    return result
