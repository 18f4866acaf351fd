"""FP8 numbers with scales: V3's tiles and blocks (arXiv 2412.19437, section 3.3).

E4M3 has 253 different finite numbers, from 2^-9 to 448. Numbers are brought
into that range by a scale. One scale for 128 numbers of an activation, or for
a block of 128 x 128 weights, keeps one outlier from crushing all the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.errors import R1Error

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SCALINGS = ("tile", "tensor", "none")


@dataclass(frozen=True)
class Fp8Recipe:
    """How numbers become FP8. The defaults are V3's.

    scaling: "tile" (1 x `size` for activations and gradients, `size` x `size`
        for weights), "tensor" (one scale), "none" (the plain cast).
    power_of_two: round scales up to a power of two, as V3.1 does (ue8m0).

    Raises:
        R1Error: an unknown scaling, or a size below 1.
    """

    scaling: str = "tile"
    size: int = 128
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise R1Error(
                f"fp8.scaling: {self.scaling!r} is unknown; choose tile, tensor or none"
            )
        if self.size < 1:
            raise R1Error(f"fp8.size: {self.size} is no width of a tile; V3 uses 128")

    def activation(self, x: Tensor) -> Tensor:
        """x (rows, depth), rounded in 1 x size tiles along the depth."""
        return self._round(x, 1)

    def weight(self, w: Tensor) -> Tensor:
        """w (out, in), rounded in size x size blocks."""
        return self._round(w, self.size)

    def _round(self, x: Tensor, rows: int) -> Tensor:
        if self.scaling == "none":
            return x.clamp(-LARGEST, LARGEST).to(E4M3).to(x.dtype)
        tile = (rows, self.size) if self.scaling == "tile" else tuple(x.shape)
        return dequantise(*quantise(x, tile, self.power_of_two), tile).to(x.dtype)


def quantise(
    x: Tensor, tile: tuple[int, ...], power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Codes and scales: x is about codes * scale of their tile.

    Args:
        x: (rows, columns), any sizes: tiles at the edges may be smaller.
        tile: (rows, columns) that share a scale.

    Returns:
        codes (rows, columns) float8_e4m3fn; scales (tiles down, tiles across)
        float32, the tile's largest absolute value divided by 448; 1 where that
        is 0.
    """
    tiles = _tiles(x.float(), tile)
    largest = tiles.abs().amax((1, 3))
    scales = largest / LARGEST
    if power_of_two:
        scales = scales.log2().ceil().exp2()
    # Of zeros, and of numbers so small that the division gives 0.
    scales = torch.where(scales > 0, scales, 1.0)
    codes = (tiles / scales[:, None, :, None]).clamp(-LARGEST, LARGEST).to(E4M3)
    return _untiled(codes, x.shape), scales


def dequantise(codes: Tensor, scales: Tensor, tile: tuple[int, ...]) -> Tensor:
    """codes * scale of their tile: (rows, columns) float32."""
    tiles = _tiles(codes.float(), tile)
    return _untiled(tiles * scales[:, None, :, None], codes.shape)


def _tiles(x: Tensor, tile: tuple[int, ...]) -> Tensor:
    """(rows, columns) -> (tiles down, tile rows, tiles across, tile columns)."""
    high, wide = (max(1, n) for n in tile)
    down, across = -x.shape[0] % high, -x.shape[1] % wide
    if down or across:  # padding copies, even by nothing
        x = F.pad(x, (0, across, 0, down))
    return x.unflatten(1, (-1, wide)).unflatten(0, (-1, high))


def _untiled(tiles: Tensor, shape: torch.Size) -> Tensor:
    return tiles.flatten(2, 3).flatten(0, 1)[: shape[0], : shape[1]]
