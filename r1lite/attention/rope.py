"""Rotary positions (arXiv 2104.09864) and YaRN (arXiv 2309.00071).

MLA turns only the decoupled `qk_rope_head_dim` part of queries and keys (V2,
arXiv 2405.04434, section 2.1.3), so keys without position stay compressible.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.hot import hot

YARN_NEEDS = ("factor", "original_max_position_embeddings")


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Attention temperature for a context `factor` times longer (V2, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def scaling_of(config: R1Config) -> dict[str, Any] | None:
    """The YaRN settings, or None for plain RoPE.

    Raises:
        R1Error: an unknown kind of scaling, or a key that YaRN needs is missing.
    """
    scaling = config.rope_scaling
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if scaling is None or kind == "default":
        return None
    if kind != "yarn":
        raise R1Error(
            f"model.rope_scaling: type {kind!r} is not built; use 'yarn' or none"
        )
    for key in YARN_NEEDS:
        if not scaling.get(key):
            raise R1Error(f"model.rope_scaling: YaRN needs {key!r}; add it")
    return scaling


def softmax_scale(config: R1Config) -> float:
    """qk_head_dim^-0.5, times mscale^2 when YaRN sets mscale_all_dim."""
    scale = config.qk_head_dim**-0.5
    yarn = scaling_of(config)
    if yarn and yarn.get("mscale_all_dim"):
        scale *= yarn_mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2
    return scale


def _rotation_factor(yarn: dict[str, Any]) -> float:
    """What YaRN multiplies cos and sin by; 1 when mscale = mscale_all_dim."""
    if yarn.get("attention_factor") is not None:
        return float(yarn["attention_factor"])
    factor, part, whole = yarn["factor"], yarn.get("mscale"), yarn.get("mscale_all_dim")
    if part and whole:
        return yarn_mscale(factor, part) / yarn_mscale(factor, whole)
    return yarn_mscale(factor)


def _ramp(yarn: dict[str, Any], dim: int, theta: float) -> Tensor:
    """(dim/2,) in [0, 1]: 0 keeps a frequency, 1 divides it by `factor`."""

    def pair_turning(rotations: float) -> float:
        length = yarn["original_max_position_embeddings"]
        return dim * math.log(length / (rotations * 2 * math.pi)) / 2 / math.log(theta)

    low = pair_turning(yarn.get("beta_fast") or 32)
    high = pair_turning(yarn.get("beta_slow") or 1)
    if yarn.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    return ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


def frequencies(config: R1Config) -> tuple[Tensor, float]:
    """Turning speed of each pair and the factor on cos and sin.

    Returns:
        (qk_rope_head_dim / 2,) float32 radians per position, on the CPU.
    """
    dim, theta = config.qk_rope_head_dim, config.rope_theta
    with torch.device("cpu"):
        steps = torch.arange(0, dim, 2, dtype=torch.float32)
        speed = 1.0 / theta ** (steps / dim)
        yarn = scaling_of(config)
        if yarn is None:
            return speed, 1.0
        ramp = _ramp(yarn, dim, theta)
        speed = speed / yarn["factor"] * ramp + speed * (1 - ramp)
    return speed, _rotation_factor(yarn)


class Rope:
    """cos and sin of positions, made once per forward and shared by all layers.

    Not a module: a buffer would be rounded by `.to(bfloat16)`.
    """

    def __init__(self, config: R1Config) -> None:
        self.speed, self.factor = frequencies(config)
        self.interleave = config.rope_interleave

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (batch or 1, seq) -> cos, sin, each (..., seq, dim/2)."""
        if self.speed.device != positions.device:
            self.speed = self.speed.to(positions.device)
        angles = positions.unsqueeze(-1).float() * self.speed
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return cos.to(dtype), sin.to(dtype)


@hot
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """Turn the pairs of x by their angles.

    Pairs are neighbours (0,1),(2,3).. when interleaved, halves (0,d/2).. when
    not. Either way the result is written in halves: a query and a key share
    the order, so their dot product does not see it.

    Args:
        x: (..., dim); cos, sin: (..., dim/2), broadcastable.
    """
    if interleave:
        a, b = x[..., 0::2], x[..., 1::2]
    else:
        a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
