"""What `quantize_` did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What became of one weight. `scheme` "" says that it stays in float."""

    name: str
    parameters: int
    bytes_before: int
    bytes_after: int
    scheme: str
    note: str


@dataclass(frozen=True)
class Report:
    """What `quantize_` covered, of all parameters of the model, and what not."""

    entries: tuple[Entry, ...]

    @property
    def quantised(self) -> tuple[Entry, ...]:
        """The weights that have a scheme now."""
        return tuple(e for e in self.entries if e.scheme)

    @property
    def left_out(self) -> tuple[Entry, ...]:
        """Everything that stays in float; `note` says why."""
        return tuple(e for e in self.entries if not e.scheme)

    @property
    def coverage(self) -> float:
        """Share of the parameters that is quantised."""
        total = sum(e.parameters for e in self.entries)
        return sum(e.parameters for e in self.quantised) / total

    @property
    def coverage_bytes(self) -> float:
        """Share of the float model's bytes that is quantised."""
        return sum(e.bytes_before for e in self.quantised) / self.bytes_before

    @property
    def routed_coverage(self) -> float:
        """Share of the routed experts' parameters that is quantised; 1 without any.

        They are most of an MoE, and what a walk over nn.Linear misses.
        """
        routed = [e for e in self.entries if ".experts." in e.name]
        count = sum(e.parameters for e in routed)
        return sum(e.parameters for e in routed if e.scheme) / count if count else 1.0

    @property
    def bytes_before(self) -> int:
        """Bytes of all parameters before."""
        return sum(e.bytes_before for e in self.entries)

    @property
    def bytes_after(self) -> int:
        """Bytes of all parameters, codes, scales and zero points after."""
        return sum(e.bytes_after for e in self.entries)

    @property
    def bits_per_weight(self) -> float:
        """Bits of a quantised weight, scales and zero points included."""
        covered = self.quantised
        count = sum(e.parameters for e in covered)
        return 8 * sum(e.bytes_after for e in covered) / max(1, count)

    def __str__(self) -> str:
        """A few lines to print."""
        lines = [
            f"quantised {self.coverage:.1%} of the parameters "
            f"({self.coverage_bytes:.1%} of the bytes, {self.routed_coverage:.1%} of "
            f"the routed experts), {self.bits_per_weight:.2f} bits each; "
            f"{self.bytes_before:,} -> {self.bytes_after:,} bytes"
        ]
        noted = dict.fromkeys((e.scheme, e.note) for e in self.quantised if e.note)
        for scheme, note in noted:
            names = [
                e.name for e in self.quantised if (e.scheme, e.note) == (scheme, note)
            ]
            more = f" and {len(names) - 1} more" if names[1:] else ""
            lines.append(f"  {names[0]}{more}: {scheme}, {note}")
        reasons = dict.fromkeys(e.note for e in self.left_out)
        for reason in reasons:
            some = [e for e in self.left_out if e.note == reason]
            count = sum(e.parameters for e in some)
            lines.append(f"  left in float: {count:,} parameters, {reason}")
        return "\n".join(lines)
