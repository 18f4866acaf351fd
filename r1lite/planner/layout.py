"""How a run is cut up: ranks for pipeline, data and experts."""

from __future__ import annotations

from dataclasses import dataclass

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.parallel.cut import layers_of

CUTS = ("nothing", "optimizer", "fsdp")


@dataclass(frozen=True)
class Layout:
    """`gpus` ranks: `pp` pipeline stages of dp = gpus / pp data-parallel ranks each.

    The dp ranks of a stage are also its expert-parallel groups of `ep` ranks, as in
    V3 (PP16, EP64, ZeRO-1, no tensor parallelism): no rank is added for experts.

    Attributes:
        rows: sequences in a global batch; seq: tokens of each.
        micro_rows: sequences a rank pushes through the pipeline at once.
        cut: what ranks that hold the same parameter divide among them: "nothing"
            (`shard_experts_` alone), "optimizer" states (ZeRO-1, as V3), or all of
            what is not an expert ("fsdp", as `fully_shard_`).
    """

    gpus: int = 1
    pp: int = 1
    ep: int = 1
    rows: int = 8
    seq: int = 4096
    micro_rows: int = 1
    cut: str = "optimizer"

    @property
    def dp(self) -> int:
        """Data-parallel ranks of each stage."""
        return self.gpus // self.pp

    @property
    def micro_batches(self) -> int:
        """Micro-batches that each rank pushes through in one step."""
        return self.rows // (self.dp * self.micro_rows)

    @property
    def tokens(self) -> int:
        """Tokens of a global batch."""
        return self.rows * self.seq

    def check(self, c: R1Config) -> None:
        """Raise R1Error naming the first number that does not fit."""
        for name in ("gpus", "pp", "ep", "rows", "seq", "micro_rows"):
            if getattr(self, name) < 1:
                raise R1Error(f"{name}: {getattr(self, name)} is not above 0; give 1")
        if self.cut not in CUTS:
            raise R1Error(f"cut: {self.cut!r} is unknown; choose " + ", ".join(CUTS))
        if self.gpus % self.pp:  # first: dp may be 0, and the others divide by it
            raise R1Error(
                f"pp: {self.pp} does not divide {self.gpus} GPUs; choose another pp"
            )
        blocks = c.num_hidden_layers
        rules = [
            (self.pp <= blocks, "pp", f"is more than the {blocks} layers"),
            (self.dp % self.ep == 0, "ep", f"does not divide dp = {self.dp}"),
            (
                c.n_routed_experts % self.ep == 0,
                "ep",
                f"does not divide {c.n_routed_experts} experts",
            ),
            (
                self.rows % (self.dp * self.micro_rows) == 0 and self.micro_batches > 0,
                "rows",
                f"is no multiple of dp x micro_rows = {self.dp * self.micro_rows}",
            ),
        ]
        for fits, name, why in rules:
            if not fits:
                raise R1Error(
                    f"{name}: {getattr(self, name)} {why}; choose another {name}"
                )

    def stage_layers(self, c: R1Config, stage: int) -> list[int]:
        """The blocks of a stage, as `r1lite.parallel.cut.layers_of` cuts them.

        The last stage also has the head and the MTP module.
        """
        return list(layers_of(c.num_hidden_layers, self.pp, stage))
