"""Flash attention over packed documents: causal, grouped heads, d_qk != d_v.

The kernels are in `attention_kernels`. MLA needs what tutorial attention cannot do:
keys of 192 = 128 + 64 numbers beside values of 128 (V3), and documents packed in a
row that do not see each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.kernels import attention_kernels as kernels
from r1lite.kernels.choose import Tile, power_of_two, tile_for, triton, use_triton

# Tiles of queries x keys: what heads of 192 + 128 leave room for in the registers,
# and rows enough for the chip's widest instruction (results/kernels/compile.md).
FORWARD = {
    "sm_80": Tile(128, 32, 8),
    "sm_90": Tile(128, 64, 8),
    "sm_100": Tile(128, 64, 8),
    "gfx942": Tile(64, 32, 4),
}
BACK_QUERIES = {
    "sm_80": Tile(32, 32, 4),
    "sm_90": Tile(64, 64, 8),
    "sm_100": Tile(64, 64, 8),
    "gfx942": Tile(32, 32, 4),
}
# A second tile in flight would spill 528 bytes on a B200.
BACK_KEYS = BACK_QUERIES | {"sm_100": Tile(64, 64, 8, stages=1)}


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float, causal: bool = True
) -> Tensor:
    """What `attention` computes, document by document, scores written out."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = []
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale
        if causal:
            future = torch.ones(b - a, b - a, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[a:b]))
    return torch.cat(out) if out else q.new_zeros(0, q.shape[1], v.shape[2])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    scale: float,
    causal: bool = True,
    longest: int | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v within each document.

    Args:
        q: (tokens, heads, d_qk); k: (tokens, kv_heads, d_qk);
            v: (tokens, kv_heads, d_v). Any strides but the last, which is 1.
        starts: (documents + 1,) int32 or int64, from 0 to tokens, rising.
        longest: tokens of the longest document, if known: asking a GPU for it
            means to wait for it.

    Returns:
        (tokens, heads, d_v).

    Raises:
        R1Error: shapes that do not belong together.
    """
    _check(q, k, v)
    if not use_triton(q):
        return attention_reference(q, k, v, starts, scale, causal)
    q, k, v = (_close(x) for x in (q, k, v))
    if longest is None:
        longest = int((starts[1:] - starts[:-1]).max()) if len(starts) > 1 else 0
    return _attention(q, k, v, starts.contiguous(), longest, scale, causal)[0]


def _close(x: Tensor) -> Tensor:
    """x as the kernels read it: within a tile, of at most 128 rows, in 32 bits."""
    return x if x.stride(-1) == 1 and x.stride(0) < 2**24 else x.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if len({len(q), len(k), len(v)}) > 1 or k.shape[1] != v.shape[1]:
        raise R1Error(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v "
            f"{tuple(v.shape)}; give (tokens, heads, width), k and v of equal heads"
        )
    if q.shape[1] % k.shape[1] or q.shape[2] != k.shape[2]:
        raise R1Error(
            f"attention: {q.shape[1]} heads of width {q.shape[2]} do not go with "
            f"{k.shape[1]} key heads of width {k.shape[2]}"
        )


def tiles(width: int) -> tuple[int, int]:
    """A width as two powers of two, the second 0 if one will do: 192 -> (128, 64)."""
    whole = power_of_two(width)
    if whole == width or width <= 16:
        return max(16, whole), 0
    half = whole // 2
    return half, max(16, power_of_two(width - half))


def shape_of(width: int, v_width: int, causal: bool, tile: Tile) -> dict[str, Any]:
    """The constants of a kernel for one tile, without its warps and stages."""
    d1, d2 = tiles(width)
    wide = max(16, power_of_two(v_width))
    return {"CAUSAL": causal, "D1": d1, "D2": d2, "DV": wide, "M": tile.m, "N": tile.n}


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(s for t in tensors for s in t.stride()[:2])


@torch.library.custom_op("r1lite::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    tokens, heads, width = q.shape
    o = q.new_empty(tokens, heads, v.shape[2])
    lse = q.new_empty(heads, tokens, dtype=torch.float32)
    tile = tile_for(FORWARD, q)
    grid = triton.cdiv(longest, tile.m), heads, len(starts) - 1
    if all(grid):
        kernels.forward[grid](
            *(q, k, v, o, lse, starts, scale, heads // k.shape[1], tokens),
            *(*_strides(q, k, v, o), width, v.shape[2]),
            **shape_of(width, v.shape[2], causal, tile),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return o, lse


@_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    tokens, heads = q.shape[:2]
    o = q.new_empty(tokens, heads, v.shape[2])
    return o, q.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("r1lite::attention_backward", mutates_args=())
def _attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads, width = q.shape
    group = heads // k.shape[1]
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = (do.float() * o.float()).sum(-1).T.contiguous()
    documents = len(starts) - 1
    given = (q, k, v, do, lse, delta)
    tile = tile_for(BACK_KEYS, q)
    grid = triton.cdiv(longest, tile.n), k.shape[1], documents
    if all(grid):
        kernels.backward_keys[grid](
            *(*given, dk, dv, starts, scale, group, tokens),
            *(*_strides(q, k, v, do, dk, dv), width, v.shape[2]),
            **shape_of(width, v.shape[2], causal, tile),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        tile = tile_for(BACK_QUERIES, q)
        grid = triton.cdiv(longest, tile.m), heads, documents
        kernels.backward_queries[grid](
            *(*given, dq, starts, scale, group, tokens),
            *(*_strides(q, k, v, do, dq), width, v.shape[2]),
            **shape_of(width, v.shape[2], causal, tile),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return dq, dk, dv


@_attention_backward.register_fake
def _(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, starts)


def _gradient(ctx: Any, do: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _attention_backward(do.contiguous(), *ctx.saved_tensors, *ctx.rest)
    return *grads, None, None, None, None


_attention.register_autograd(_gradient, setup_context=_keep)
