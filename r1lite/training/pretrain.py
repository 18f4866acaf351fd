"""Pretraining: next-token prediction, MTP and the balance terms.

Source: DeepSeek-V3, arXiv 2412.19437, sections 2.2 (MTP), 2.1.2 (balance), 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.data.packing import Rows, RowSource
from r1lite.loss import head_loss
from r1lite.model import R1Model
from r1lite.moe.balance import routers
from r1lite.mtp import mtp_loss, mtp_targets
from r1lite.parallel.pipeline import Pipelined
from r1lite.settings import Section
from r1lite.training.loop import BalanceConfig, Run, StageResult, Update, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.schedule import BatchRamp, Phase, TokenPlan


class PretrainConfig(Section):
    """Section `[pretrain]`. A batch is `batch_size` rows of `seq_len` tokens.

    `document_mask` off is what V3 did: packed documents see each other. With a
    `ramp` the first batches are smaller, so the same tokens take more than `steps`.
    `phases` of the learning rate replace those of `optim`, all but its warm-up; with
    either, the rate follows the tokens read and not the steps.
    """

    steps: int = 800
    batch_size: int = 16
    seq_len: int = 256
    document_mask: bool = False
    mtp_weight: float = 0.3
    balance: BalanceConfig = BalanceConfig()
    optim: OptimConfig = OptimConfig(name="muon")
    ramp: BatchRamp = BatchRamp()
    phases: tuple[Phase, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens the stage is trained on."""
        return self.steps * self.batch_size * self.seq_len

    @property
    def by_tokens(self) -> bool:
        """Does the learning rate follow the tokens?"""
        return bool(self.phases) or self.ramp != BatchRamp()

    def plan(self) -> TokenPlan:
        """The batch of every step."""
        decay = self.optim.decay_fraction
        last = Phase(share=decay, end=self.optim.final_lr)
        return TokenPlan(
            self.steps * self.batch_size,
            self.batch_size,
            self.ramp,
            self.phases or (Phase(share=1 - decay), last),
            self.optim.warmup_steps,
        )


def pretrain(
    run: Run,
    model: R1Model,
    config: PretrainConfig,
    rows: RowSource,
    name: str = "pretrain",
) -> StageResult:
    """Train `model` in place on packed rows of `seq_len + 1` tokens.

    With pipeline stages (`[parallel]` pp) it is cut into them, too.
    """
    plan = config.plan()
    if run.team.staged is not None:
        return _pretrain_in_stages(run, model, config, rows, name)
    plan.check_shares(run.team.ranks)

    def step(i: int, update: Update) -> dict[str, float]:
        batch = rows.rows(*plan.rows(i))
        pieces = [_piece(batch, s, run) for s in run.micro_batches(len(batch.ids))]
        totals = _units(batch, config, model)
        means = run.accumulate(pieces, lambda p: _terms(run, model, config, p), totals)
        values = {"loss": means["loss"]}
        if "mtp_loss" in means:
            values["mtp_loss"] = means["mtp_loss"] / config.mtp_weight
        return {**values, "grad_norm": update(), "tokens": totals["loss"]}

    scale = plan.scale if config.by_tokens else None
    gamma = config.balance.gamma
    return run_stage(run, name, model, config.optim, plan.steps, step, gamma, scale)


def _pretrain_in_stages(
    run: Run, model: R1Model, config: PretrainConfig, rows: RowSource, name: str
) -> StageResult:
    """Each rank holds some of the layers; what it logs is of its own routers."""
    team = run.team.staged
    assert team is not None and team.mesh is not None
    mesh, plan = team.mesh, config.plan()
    readers = team.ranks // mesh.stages
    plan.check_shares(readers, readers * run.parallel.micro_batches)
    pipes: list[Pipelined] = []
    has_mtp = model.mtp is not None and bool(config.mtp_weight)

    def cut() -> None:
        pipes.append(
            Pipelined(
                model,
                mesh,
                run.parallel.schedule,
                run.parallel.micro_batches,
                mtp_weight=config.mtp_weight,
                balance=config.balance.loss,
                autocast=run.autocast,
            )
        )

    def step(i: int, update: Update) -> dict[str, float]:
        batch = rows.rows(*plan.rows(i))
        ids, targets = batch.ids[:, :-1].contiguous(), batch.ids[:, 1:].contiguous()
        masked = batch.document_ids[:, :-1] if config.document_mask else None
        means = pipes[0].step(ids, targets, masked)
        values = {k: means[k] for k in ("loss", "mtp_loss") if k == "loss" or has_mtp}
        return {**values, "grad_norm": update(), "tokens": targets.numel()}

    return run_stage(
        replace(run, team=team),
        name,
        model,
        config.optim,
        plan.steps,
        step,
        config.balance.gamma,
        plan.scale if config.by_tokens else None,
        cut,
    )


@dataclass(frozen=True)
class _Piece:
    """A micro-batch on its device: (rows, seq_len + 1) each."""

    ids: Tensor
    document_ids: Tensor


def _piece(batch: Rows, rows: slice, run: Run) -> _Piece:
    device = run.team.device
    return _Piece(batch.ids[rows].to(device), batch.document_ids[rows].to(device))


def _units(batch: Rows, config: PretrainConfig, model: R1Model) -> dict[str, int]:
    """What each term of the loss is a mean over, counted for the whole batch."""
    units = {"loss": batch.ids[:, 1:].numel(), "balance": len(batch.ids)}
    if model.config.num_nextn_predict_layers and config.mtp_weight:
        masked = batch.document_ids[:, :-1] if config.document_mask else None
        units["mtp_loss"] = int(mtp_targets(batch.ids[:, :-1], masked)[1].sum())
    return units


def _terms(
    run: Run, model: R1Model, config: PretrainConfig, piece: _Piece
) -> dict[str, tuple[Tensor, int]]:
    """The weighted terms of the loss on a micro-batch, with their units."""
    ids, targets = piece.ids[:, :-1], piece.ids[:, 1:]
    masked = piece.document_ids[:, :-1] if config.document_mask else None
    for router in routers(model):
        router.last = None  # the MTP module's still is that of the piece before
    with run.autocast():
        hidden = model.hidden(ids, document_ids=masked)
        loss = head_loss(hidden.flatten(0, 1), model.lm_head, targets.flatten())
        terms = {"loss": (loss, targets.numel())}
        terms["balance"] = (config.balance.loss(model).to(ids.device), len(ids))
        if model.mtp is not None and config.mtp_weight:
            ahead = mtp_loss(model, ids, hidden, document_ids=masked)
            units = int(mtp_targets(ids, masked)[1].sum())
            terms["mtp_loss"] = (config.mtp_weight * ahead, units)
    return terms


@torch.inference_mode()
def bits_per_byte(
    model: R1Model, documents: list[list[int]], n_bytes: int, seq_len: int
) -> float:
    """Bits the model spends per byte of held-out text.

    `documents`: token ids, each document starting with the begin token, which
    is context and costs nothing. Unlike the loss, it compares tokenizers.
    """
    nats = 0.0
    rows = [
        d[at : at + seq_len + 1]
        for d in documents
        for at in range(0, len(d) - 1, seq_len)
    ]
    rows.sort(key=len)
    for at in range(0, len(rows), 32):
        chunk = rows[at : at + 32]
        width = max(len(r) for r in chunk)
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        real = torch.zeros(len(chunk), width, dtype=torch.bool)
        for i, row in enumerate(chunk):
            ids[i, : len(row)] = torch.tensor(row)
            real[i, : len(row)] = True
        device = model.embed_tokens.weight.device
        ids, real = ids.to(device), real.to(device)
        logits = model(ids[:, :-1]).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        nats += float(loss[real[:, 1:].flatten()].double().sum())
    return nats / n_bytes / 0.6931471805599453
