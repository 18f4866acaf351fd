"""What `build` compiles: every kernel as it is launched at V3's sizes in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from r1lite.kernels import (
    attention,
    attention_kernels,
    dequant,
    fp8,
    fp8_gemm,
    grouped,
    logprobs,
    mla_decode,
    norm,
    permute,
    rope,
    router,
    swiglu,
)
from r1lite.kernels.choose import Tile

BF16, FP32, I64, I32, U8, E4M3 = "*bf16", "*fp32", "*i64", "*i32", "*u8", "*fp8e4nv"
ROW = 8192  # 7168, V3's width, rounded up


@dataclass(frozen=True)
class Case:
    """A kernel at a size that matters: types of its arguments, and its constants.

    An argument without a type is a whole number of 32 bits. `odd` names those that
    are no multiple of 16; of the others Triton makes use when a kernel is launched.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2
    odd: tuple[str, ...] = ()


def cases(chip: str) -> list[Case]:
    """All kernels with the tiles that `chip` gets."""
    parts = _attention(chip), _mla_decode(chip), _experts(), _rows()
    return [case for part in (*parts, _head(), _quantised(chip)) for case in part]


def _attention(chip: str) -> Iterator[Case]:
    """MLA's widths: keys of 192 numbers, values of 128."""
    types = dict.fromkeys(["q", "k", "v", "o", "do", "dq", "dk", "dv"], BF16)
    types |= {"lse": FP32, "delta": FP32, "starts": I32, "scale": "fp32"}
    kernels = attention_kernels
    for name, kernel, tiles in (
        ("attention", kernels.forward, attention.FORWARD),
        ("attention, dk dv", kernels.backward_keys, attention.BACK_KEYS),
        ("attention, dq", kernels.backward_queries, attention.BACK_QUERIES),
    ):
        tile = tiles[chip]
        constants = attention.shape_of(192, 128, True, tile)
        sizes = tile.warps, tile.stages, ("group",)
        yield Case(name, kernel, types, constants, *sizes)


def _mla_decode(chip: str) -> Iterator[Case]:
    types = {"query": BF16, "pages": BF16, "tables": I32, "lengths": I32, "out": BF16}
    types |= {"part": FP32, "lse": FP32, "scale": "fp32"}
    tile = mla_decode.TILES[chip]
    constants = mla_decode.shape_of(512, 64, tile)
    sizes = tile.warps, tile.stages, ("t_batch",)
    yield Case("mla_decode, parts", mla_decode._part, types, constants, *sizes)
    constants = {"S": 8, "SIZE": 512}
    merge = mla_decode._merge
    yield Case("mla_decode, merge", merge, types, constants, odd=("splits",))


def _experts() -> Iterator[Case]:
    """Routing to 8 of 256 experts, moving rows there and back, and their products."""
    types = {"logits": BF16, "bias": FP32, "weights": FP32, "experts": I64}
    types |= {"scores": FP32, "counts": I64, "scaling": "fp32"}
    picks = {"top_k": 8, "SOFTMAX": False, "NORMALIZE": True, "K": 8}
    forward = picks | {"keep": 4, "BIASED": True, "LIMITED": True}
    forward |= {"ROWS": router.ROWS, "G": 8, "S": 32}
    yield Case("router", router._route, types, forward, odd=("groups",))
    types |= {"dweights": FP32, "dscores": FP32, "dlogits": FP32}
    yield Case("router, backward", router._slope, types, picks | {"SIZE": 256})
    types = dict.fromkeys(["x", "y", "dy", "done", "ddone"], BF16)
    types |= {"order": I64, "place": I64, "weights": FP32, "dweights": FP32}
    row, odd = {"SIZE": ROW}, ("top_k",)
    yield Case("permute", permute._gather, types, row, odd=odd)
    collect = permute._collect
    yield Case("unpermute", collect, types, row | {"WEIGHED": True}, odd=odd)
    yield Case("unpermute, backward", permute._spread, types, row, odd=odd)
    types = dict.fromkeys(["x", "y", "weight", "dy", "dw"], BF16) | {"counts": I64}
    rows, columns, depth = grouped.ROWS, grouped.COLUMNS, grouped.DEPTH
    stages = grouped.STAGES
    tile = {"E": 256, "M": rows, "N": columns, "K": depth}
    # As many numbers of a weight lie side by side along the inputs: w_k is 1.
    yield Case("grouped product", grouped._product, types, tile | {"w_k": 1}, 4, stages)
    tile = {"E": 256, "M": depth, "N": columns, "K": columns}
    yield Case("grouped product, dW", grouped._weight_gradient, types, tile, 4, stages)


def _rows() -> Iterator[Case]:
    types = dict.fromkeys(["x", "y", "weight", "dy", "dx"], BF16)
    types |= {"rstd": FP32, "dw": FP32, "eps": "fp32"}
    row = {"SIZE": ROW}
    yield Case("rms_norm", norm._forward, types, row)
    constants = row | {"ROWS": norm.ROWS}
    yield Case("rms_norm, backward", norm._backward, types, constants, norm.WARPS)
    types = dict.fromkeys(["gate", "up", "y", "dy", "dgate", "dup"], BF16)
    block = {"BLOCK": swiglu.BLOCK}
    yield Case("swiglu", swiglu._forward, types, block)
    yield Case("swiglu, backward", swiglu._backward, types, block)
    types = {"x": BF16, "y": BF16, "cos": FP32, "sin": FP32}
    pairs = {"ALONG": 2, "APART": 1, "OUT": 32, "BACK": False, "SIZE": 32}
    yield Case("rope", rope._turn, types, pairs)


def _head() -> Iterator[Case]:
    types = {"z": BF16, "targets": I64, "logp": FP32, "lse": FP32, "grad": FP32}
    types |= {"scale": "fp32"}
    block = {"SIZE": logprobs.BLOCK}
    yield Case("token_logprobs", logprobs._normaliser, types, block)
    yield Case("token_logprobs, backward", logprobs._slope, types, block)


def _quantised(chip: str) -> Iterator[Case]:
    """FP8 with V3's scales; whole numbers with a scale for a row, or for 32."""
    odd = ("tiles", "s_row", "as_row", "ws_row")
    types = {"x": BF16, "codes": U8, "scales": FP32, "y": BF16}
    constants = {"POWER": False, "SIDE": fp8.SIDE, "TILES": fp8.TILES}
    yield Case("act_quant", fp8._quantise, types, constants, odd=odd)
    constants = {"SIDE": fp8.SIDE, "ROWS": fp8.ROWS}
    yield Case("weight_dequant", fp8._dequantise, types, constants, odd=odd)
    tile, direct = fp8_gemm.TILES[chip], chip in fp8_gemm.DIRECT
    types = dict.fromkeys(["a", "w"], E4M3 if direct else U8)
    types |= {"a_scales": FP32, "w_scales": FP32, "y": BF16}
    constants = {"DIRECT": direct, "SIDE": fp8.SIDE, "M": tile.m, "N": tile.n}
    sizes = tile.warps, tile.stages, odd
    yield Case("fp8 product", fp8_gemm._product, types, constants, *sizes)
    yield from _integers("int8", "*i8", FP32, dequant.DEPTH, False)
    yield from _integers("int4 in groups", U8, BF16, 32, True)


def _integers(
    name: str, codes: str, scales: str, depth: int, packed: bool
) -> Iterator[Case]:
    types = {"x": BF16, "codes": codes, "scales": scales, "zeros": scales, "y": BF16}
    constants = {"PACKED": packed, "ZEROS": packed, "K": depth}
    if not packed:  # one scale a row: a stride of 1
        constants |= {"s_row": 1, "groups": 1}
    one = constants | {"N": dequant.ONE, "G": dequant.WIDE // depth}
    yield Case(f"{name}, one row", dequant._one, types, one)
    tile: Tile = dequant.MANY
    many = constants | {"M": tile.m, "N": tile.n}
    yield Case(f"{name} product", dequant._many, types, many, tile.warps, tile.stages)
