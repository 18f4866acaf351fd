"""GPUs as the planner sees them: peak rates, memory and the links between them."""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.errors import R1Error

GB = 10**9


@dataclass(frozen=True)
class Hardware:
    """One GPU and its links; rates per second, in one direction.

    Attributes:
        flops: dense bf16; fp8_flops: dense FP8, equal to bf16 where it has none.
        memory: bytes; bandwidth: bytes/s of the memory.
        node_bytes: bytes/s to a GPU of the same node; net_bytes: to another node.
    """

    name: str
    flops: float
    fp8_flops: float
    memory: float
    bandwidth: float
    node_bytes: float
    net_bytes: float
    gpus_per_node: int = 8


# Makers' data sheets; the H800's links as V3 measures them (section 3.2.2: NVLink
# 160 GB/s, InfiniBand 50 GB/s).
KNOWN = {
    h.name: h
    for h in (
        Hardware("h800", 989e12, 1979e12, 80 * GB, 3350 * GB, 160 * GB, 50 * GB),
        Hardware("h100", 989e12, 1979e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB),
        Hardware("a100", 312e12, 312e12, 80 * GB, 2039 * GB, 300 * GB, 25 * GB),
        Hardware("l4", 121e12, 242e12, 24 * GB, 300 * GB, 32 * GB, 12.5 * GB),
    )
}


def hardware(name: str) -> Hardware:
    """The GPU called `name`; R1Error lists those that are known."""
    if name not in KNOWN:
        raise R1Error(f"--gpu: {name!r} is not known; choose {', '.join(KNOWN)}")
    return KNOWN[name]
