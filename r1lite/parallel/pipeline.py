"""Pipeline parallelism: the layers are cut up, micro-batches pass through them.

torch.distributed.pipelining brings the schedules and moves activations and their
gradients from rank to rank: 1F1B (arXiv 2104.04473, section 2.2.1), and DualPipeV,
the V-shaped half of V3's DualPipe (arXiv 2412.19437, section 3.2.1). What is
written here is what an R1 model needs: which layer lies where (`cut`), the
balance losses of layers on several ranks, MTP at the end, and losses that are
shares of the global mean, so that the gradient is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.schedules import ScheduleDualPipeV
from torch.distributed.tensor import DTensor

from r1lite.attention.mask import check_inputs
from r1lite.errors import R1Error
from r1lite.memory.recompute import CheckpointedBlock
from r1lite.model import R1Model
from r1lite.mtp import mtp_targets
from r1lite.parallel.cut import Schedule, cut_, stages_of
from r1lite.parallel.mesh import Mesh
from r1lite.parallel.stage import TERMS, Balance, Stage


class Pipelined:
    """A model cut into stages, and the step that leads a batch through them::

        model = R1Model(config).train()
        shard_experts_(model, mesh.ep)
        pipe = Pipelined(model, mesh, "1f1b", micro_batches=4, mtp_weight=0.3)
        optimizer = AdamW(model.parameters())
        means = pipe.step(ids, targets)
        norm = finish_backward_(model, mesh, clip=1.0)
        optimizer.step()

    Args:
        model: the whole model, alike on every rank; it is cut in place to what
            this rank holds. Optimizers, `update_bias_` and `Checkpoints` take it.
        mesh: of `make_mesh(pp=...)`.
        schedule: "1f1b", or "dualpipev" with two stages on every rank.
        micro_batches: into how many a rank's rows are split.
        mtp_weight, balance, autocast: as in `Stage`.

    Raises:
        R1Error: fewer micro-batches than stages, more stages than layers, or a
            model that FSDP has cut already.
    """

    def __init__(
        self,
        model: R1Model,
        mesh: Mesh,
        schedule: Schedule = "1f1b",
        micro_batches: int = 4,
        mtp_weight: float = 0.0,
        balance: Balance | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        held = stages_of(schedule, mesh.stages, dist.get_rank(mesh.pp))
        count = mesh.stages * len(held)
        if micro_batches < count:
            raise R1Error(
                f"micro_batches: {micro_batches} are fewer than the {count} stages of "
                f"{schedule}; give at least {count}"
            )
        if any(isinstance(p, DTensor) for p in model.parameters()):
            raise R1Error("fsdp: does not go with pipeline stages yet; switch it off")
        cut_(model, schedule, mesh.stages, dist.get_rank(mesh.pp))
        self.model, self.mesh, self.micro_batches = model, mesh, micro_batches
        rest = mtp_weight, balance, autocast
        self.stages = [Stage(model, i, count, *rest) for i in held]
        self._count, self._held = count, held
        self._mtp = bool(model.config.num_nextn_predict_layers and mtp_weight)
        self._built: tuple[torch.Size, Any] | None = None

    def step(
        self, ids: Tensor, targets: Tensor, document_ids: Tensor | None = None
    ) -> dict[str, float]:
        """Forward and backward of one batch; gradients are added to.

        Args:
            ids, targets, document_ids: (rows, seq), the global batch on every
                rank. Targets count all alike.

        Returns:
            The global means of loss, mtp_loss (without its weight) and balance
            (with it), in nats, alike on every rank.

        Raises:
            R1Error: the rows do not divide among ranks and micro-batches.
        """
        check_inputs(ids, None, document_ids, 0)
        ranks = dist.get_world_size(self.mesh.world)
        if len(ids) % (ranks * self.micro_batches):
            raise R1Error(
                f"batch: {len(ids)} rows do not divide among {ranks} ranks with "
                f"{self.micro_batches} micro-batches; choose a multiple of "
                f"{ranks * self.micro_batches}"
            )
        ahead = int(mtp_targets(ids, document_ids)[1].sum()) if self._mtp else 0
        device = next(self.model.parameters()).device
        means = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        for stage in self.stages:
            counts = targets.numel(), ahead, len(ids)
            stage.units = dict(zip(TERMS, counts, strict=True))
            stage.means = means
        given = {"ids": ids, "targets": targets}
        if document_ids is not None:
            given["documents"] = document_ids
        given = {k: self.mesh.rows(v).to(device) for k, v in given.items()}
        schedule = self._schedule(given["ids"].shape)
        schedule.step(target=given["targets"], return_outputs=False, **given)
        for group in (self.mesh.world, self.mesh.pp):
            dist.all_reduce(means, group=group)
        return dict(zip(TERMS, means.tolist(), strict=True))

    def _schedule(self, shape: torch.Size) -> Any:
        """torch's schedule for a rank's rows of that shape (rows, seq)."""
        if self._built is None or self._built[0] != shape:
            rows = shape[0] // self.micro_batches
            stages = [self._stage(stage, rows, shape[1]) for stage in self.stages]
            # Losses are shares of the global mean already: nothing is left to scale.
            words = self.micro_batches, lambda loss, _: loss
            built = (
                Schedule1F1B(stages[0], *words, scale_grads=False)
                if len(stages) == 1
                else ScheduleDualPipeV(list(stages), *words, scale_grads=False)
            )
            self._built = shape, built
        return self._built[1]

    def _stage(self, stage: Stage, rows: int, seq: int) -> PipelineStage:
        """Told what comes and goes: torch's way to find out is a forward and
        backward pass of its own, which the routers would count."""
        p = next(self.model.parameters())
        size = rows, seq, self.model.config.hidden_size
        moved = (
            torch.empty(size, dtype=p.dtype, device="meta", requires_grad=True),
            torch.empty((), device="meta", requires_grad=True),
        )
        # torch splits a backward pass into that of inputs and that of weights, which
        # goes through parts of the graph again. Neither a recomputed block stands
        # that nor a weight at two depths, as a tied head above MTP's embedding:
        # "backward through the graph a second time". There all is done at once.
        whole = self.model.config.tie_word_embeddings and stage.last
        whole |= any(isinstance(m, CheckpointedBlock) for m in self.model.modules())
        return PipelineStage(
            stage,
            self._held[self.stages.index(stage)],
            self._count,
            p.device,
            input_args=() if stage.first else moved,
            output_args=moved[1] if stage.last else moved,
            group=self.mesh.pp,
            dw_builder=(lambda: lambda: None) if whole else None,
        )
