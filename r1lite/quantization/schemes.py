"""The schemes: what a weight is stored as, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from r1lite.errors import R1Error

NAMES = (
    "int8",
    "int8-dynamic",
    "int8-g32",
    "int8-g32-asym",
    "int4-g32",
    "int4-g32-asym",
    "fp8-block",
    "nf4-g32",
)
SMALLEST_GROUP = 16  # below that the scales weigh as much as the codes
_PATTERN = re.compile(r"(int8|int4|nf4)(?:-g(\d+))?(-asym)?")


@dataclass(frozen=True)
class Scheme:
    """How the numbers of a weight (out, in) are stored.

    kind: "int" (whole numbers times a scale), "codebook" (16 levels of a normal
        distribution times a scale), "fp8" (E4M3, a scale for 128 x 128).
    bits: of one code.
    group: inputs that share a scale; None is a whole row (for fp8: unused).
    symmetric: zero is code 0; otherwise each group has a zero point.
    activations: tokens become int8 as well and products are of whole numbers.
    """

    kind: str
    bits: int
    group: int | None = None
    symmetric: bool = True
    activations: bool = False

    @property
    def name(self) -> str:
        """The name that `scheme_of` reads."""
        if self.kind == "fp8":
            return "fp8-block"
        if self.activations:
            return "int8-dynamic"
        base = "nf4" if self.kind == "codebook" else f"int{self.bits}"
        group = "" if self.group is None else f"-g{self.group}"
        return base + group + ("" if self.symmetric else "-asym")

    @property
    def scale_dtype(self) -> torch.dtype:
        """bfloat16 where scales are many, float32 where there is one a row."""
        return torch.float32 if self.group is None else torch.bfloat16

    def groups(self, inputs: int) -> int:
        """Scales of one row of `inputs` numbers."""
        return 1 if self.group is None else inputs // self.group

    def fitted(self, inputs: int, where: str) -> Scheme:
        """This scheme, with a smaller group if `inputs` ask for one.

        The largest divisor of both, if that is at least 16.

        Raises:
            R1Error: no such group; or an odd number of 4-bit codes.
        """
        if self.kind == "fp8":
            return self
        if self.bits == 4 and inputs % 2:
            raise R1Error(
                f"{where}: {inputs} inputs, an odd number, cannot be packed two to "
                "a byte; use an 8-bit scheme or name it in keep"
            )
        if self.group is None or inputs % self.group == 0:
            return self
        fit = next(
            g for g in range(self.group, 0, -1) if not (inputs % g or self.group % g)
        )
        if fit < SMALLEST_GROUP:
            raise R1Error(
                f"{where}: groups of {self.group} do not divide its {inputs} inputs; "
                "choose a group that does or name it in keep"
            )
        return replace(self, group=fit)


def scheme_of(name: str | Scheme) -> Scheme:
    """The scheme of a name such as "int4-g32", "int8" or "fp8-block".

    Any group of 16 or more can be asked for: "int4-g128-asym", "nf4-g64".

    Raises:
        R1Error: an unknown name.
    """
    if isinstance(name, Scheme):
        return name
    if name == "fp8-block":
        return Scheme("fp8", 8)
    if name == "int8-dynamic":
        return Scheme("int", 8, activations=True)
    found = _PATTERN.fullmatch(name)
    kind, group, asymmetric = found.groups() if found else ("", None, None)
    size = None if group is None else int(group)
    if not kind or (kind == "nf4" and asymmetric):
        known = ", ".join(NAMES)
        raise R1Error(f"scheme: {name!r} is unknown; choose {known}, or another -gN")
    if size is not None and size < SMALLEST_GROUP:
        raise R1Error(
            f"scheme: groups of {size} are too small to save anything; "
            f"choose at least {SMALLEST_GROUP}"
        )
    bits = 8 if kind == "int8" else 4
    code = "codebook" if kind == "nf4" else "int"
    return Scheme(code, bits, size, symmetric=not asymmetric)
