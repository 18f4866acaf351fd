"""The three kernels of flash attention (arXiv 2205.14135, 2307.08691).

Scores never leave the chip: a program keeps a tile of queries and walks over the
keys with a running maximum m and sum l of each row,

    m' = max(m, max_j s_j),  l' = l e^(m - m') + sum_j e^(s_j - m'),
    acc' = acc e^(m - m') + sum_j e^(s_j - m') v_j,  o = acc / l,  L = m + log l.

Backward makes the probabilities again from L: p = e^(s - L), and with
delta = sum(do * o) it is dv = p^T do, ds = p * (do v^T - delta) * scale,
dq = ds k, dk = ds^T q. One kernel owns a tile of keys, the other one of queries, so
nothing is summed by atomics and the bits are the same every time.

A width that is no power of two is cut in two tiles, 192 = 128 + 64: rounding up to
256 would waste a quarter of the products.
"""

from __future__ import annotations

from r1lite.kernels.choose import jit, tl


@jit
def _tile(base, top, stride, inside, first, width, SIZE: tl.constexpr):
    """Rows from `top` on, columns from `first` on: (len(inside), SIZE), zero outside.

    Only the corner's address needs 64 bits. Within a tile 32 are enough, and with 64
    the addresses alone would fill a thread's registers.
    """
    row = tl.arange(0, inside.shape[0])
    at = first + tl.arange(0, SIZE)
    mask = inside[:, None] & (at < width)[None, :]
    corner = base + top * stride
    return tl.load(corner + (row[:, None] * stride + at[None, :]), mask=mask, other=0.0)


@jit
def _put(base, x, top, stride, inside, first, width, SIZE: tl.constexpr):
    row = tl.arange(0, inside.shape[0])
    at = first + tl.arange(0, SIZE)
    mask = inside[:, None] & (at < width)[None, :]
    corner = base + top * stride
    tl.store(corner + (row[:, None] * stride + at[None, :]), x, mask=mask)


@jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@jit
def forward(
    q, k, v, o, lse, starts, scale,
    group, tokens,
    q_row, q_head, k_row, k_head, v_row, v_head, o_row, o_head,
    width, v_width,
    CAUSAL: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One tile of M queries of one head of one document."""
    head, document = tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + document).to(tl.int64)
    length = (tl.load(starts + document + 1) - start).to(tl.int32)
    first = tl.program_id(0) * M
    if first < length:
        row = first + tl.arange(0, M)
        here = start + first
        real = row < length
        q_at = q + head.to(tl.int64) * q_head
        k_at = k + (head // group).to(tl.int64) * k_head
        v_at = v + (head // group).to(tl.int64) * v_head
        q1 = _tile(q_at, here, q_row, real, 0, width, D1)
        if D2:
            q2 = _tile(q_at, here, q_row, real, D1, width, D2)
        top = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, DV), tl.float32)
        stop = tl.minimum(first + M, length) if CAUSAL else length
        for at in range(0, stop, N):
            column = at + tl.arange(0, N)
            there, exists = start + at, column < length
            s = _dot(q1, tl.trans(_tile(k_at, there, k_row, exists, 0, width, D1)))
            if D2:
                k2 = _tile(k_at, there, k_row, exists, D1, width, D2)
                s += _dot(q2, tl.trans(k2))
            seen = exists[None, :]
            if CAUSAL:
                seen = seen & (column[None, :] <= row[:, None])
            s = tl.where(seen, s * scale, float("-inf"))
            higher = tl.maximum(top, tl.max(s, 1))
            p = tl.exp(s - higher[:, None])
            fade = tl.exp(top - higher)
            values = _tile(v_at, there, v_row, exists, 0, v_width, DV)
            total = total * fade + tl.sum(p, 1)
            acc = acc * fade[:, None] + _dot(p.to(values.dtype), values)
            top = higher
        acc = acc / total[:, None]
        o_at = o + head.to(tl.int64) * o_head
        _put(o_at, acc, here, o_row, real, 0, v_width, DV)
        levels = lse + head.to(tl.int64) * tokens + here + tl.arange(0, M)
        tl.store(levels, top + tl.log(total), mask=real)


@jit
def backward_keys(
    q, k, v, do, lse, delta, dk, dv, starts, scale,
    group, tokens,
    q_row, q_head, k_row, k_head, v_row, v_head, do_row, do_head,
    dk_row, dk_head, dv_row, dv_head,
    width, v_width,
    CAUSAL: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of N keys, from every query that saw them."""
    kv_head, document = tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + document).to(tl.int64)
    length = (tl.load(starts + document + 1) - start).to(tl.int32)
    first = tl.program_id(0) * N
    if first < length:
        column = first + tl.arange(0, N)
        there, exists = start + first, column < length
        k_at = k + kv_head.to(tl.int64) * k_head
        v_at = v + kv_head.to(tl.int64) * v_head
        k1 = _tile(k_at, there, k_row, exists, 0, width, D1)
        dk1 = tl.zeros((N, D1), tl.float32)
        if D2:
            k2 = _tile(k_at, there, k_row, exists, D1, width, D2)
            dk2 = tl.zeros((N, D2), tl.float32)
        values = _tile(v_at, there, v_row, exists, 0, v_width, DV)
        dvalues = tl.zeros((N, DV), tl.float32)
        begin = first // M * M if CAUSAL else 0
        for member in range(group):
            head = (kv_head * group + member).to(tl.int64)
            for at in range(begin, length, M):
                row = at + tl.arange(0, M)
                here, real = start + at, row < length
                q1 = _tile(q + head * q_head, here, q_row, real, 0, width, D1)
                # Keys stand in the rows: what follows multiplies these tiles from the
                # left, and needs no transposing of what lies in registers.
                s = _dot(k1, tl.trans(q1))
                if D2:
                    q2 = _tile(q + head * q_head, here, q_row, real, D1, width, D2)
                    s += _dot(k2, tl.trans(q2))
                level = tl.load(lse + head * tokens + start + row, mask=real, other=0.0)
                seen = exists[:, None] & real[None, :]
                if CAUSAL:
                    seen = seen & (column[:, None] <= row[None, :])
                p = tl.where(seen, tl.exp(s * scale - level[None, :]), 0.0)
                grad = _tile(do + head * do_head, here, do_row, real, 0, v_width, DV)
                dvalues += _dot(p.to(grad.dtype), grad)
                dp = _dot(values, tl.trans(grad))
                d = tl.load(delta + head * tokens + start + row, mask=real, other=0.0)
                ds = (p * (dp - d[None, :]) * scale).to(q1.dtype)
                dk1 += _dot(ds, q1)
                if D2:
                    dk2 += _dot(ds, q2)
        dk_at = dk + kv_head.to(tl.int64) * dk_head
        _put(dk_at, dk1, there, dk_row, exists, 0, width, D1)
        if D2:
            _put(dk_at, dk2, there, dk_row, exists, D1, width, D2)
        dv_at = dv + kv_head.to(tl.int64) * dv_head
        _put(dv_at, dvalues, there, dv_row, exists, 0, v_width, DV)


@jit
def backward_queries(
    q, k, v, do, lse, delta, dq, starts, scale,
    group, tokens,
    q_row, q_head, k_row, k_head, v_row, v_head, do_row, do_head,
    dq_row, dq_head,
    width, v_width,
    CAUSAL: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dq of one tile of M queries, from every key that they saw."""
    head, document = tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + document).to(tl.int64)
    length = (tl.load(starts + document + 1) - start).to(tl.int32)
    first = tl.program_id(0) * M
    if first < length:
        row = first + tl.arange(0, M)
        here, real = start + first, row < length
        wide = head.to(tl.int64)
        k_at = k + (head // group).to(tl.int64) * k_head
        v_at = v + (head // group).to(tl.int64) * v_head
        q1 = _tile(q + wide * q_head, here, q_row, real, 0, width, D1)
        dq1 = tl.zeros((M, D1), tl.float32)
        if D2:
            q2 = _tile(q + wide * q_head, here, q_row, real, D1, width, D2)
            dq2 = tl.zeros((M, D2), tl.float32)
        grad = _tile(do + wide * do_head, here, do_row, real, 0, v_width, DV)
        level = tl.load(lse + wide * tokens + start + row, mask=real, other=0.0)
        d = tl.load(delta + wide * tokens + start + row, mask=real, other=0.0)
        stop = tl.minimum(first + M, length) if CAUSAL else length
        for at in range(0, stop, N):
            column = at + tl.arange(0, N)
            there, exists = start + at, column < length
            k1 = _tile(k_at, there, k_row, exists, 0, width, D1)
            s = _dot(q1, tl.trans(k1))
            if D2:
                k2 = _tile(k_at, there, k_row, exists, D1, width, D2)
                s += _dot(q2, tl.trans(k2))
            seen = exists[None, :] & real[:, None]
            if CAUSAL:
                seen = seen & (column[None, :] <= row[:, None])
            p = tl.where(seen, tl.exp(s * scale - level[:, None]), 0.0)
            values = _tile(v_at, there, v_row, exists, 0, v_width, DV)
            ds = p * (_dot(grad, tl.trans(values)) - d[:, None]) * scale
            ds = ds.to(q1.dtype)
            dq1 += _dot(ds, k1)
            if D2:
                dq2 += _dot(ds, k2)
        _put(dq + wide * dq_head, dq1, here, dq_row, real, 0, width, D1)
        if D2:
            _put(dq + wide * dq_head, dq2, here, dq_row, real, D1, width, D2)
