"""The loop every stage shares: schedule, update, log, checkpoint, resume.

Everything random in a stage is a function of (seed, stage, step), and data is
asked for by step number. So a resumed stage needs no generator state: it goes
on at step n and takes exactly the path of a run that was never interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from r1lite.memory.accumulate import Batch, Terms, accumulate
from r1lite.model import R1Model
from r1lite.moe import balance
from r1lite.parallel.team import Team
from r1lite.parallel.watch import slow_ranks
from r1lite.settings import Section
from r1lite.training import optim
from r1lite.training.compute import ComputeConfig, ParallelConfig
from r1lite.training.guard import Guard, GuardConfig
from r1lite.training.metrics import MetricsLog
from r1lite.training.state import SavedState

Update = Callable[[], float]
StepFunction = Callable[[int, Update], dict[str, float]]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any words and numbers, equal on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class BalanceConfig(Section):
    """Load balance of a stage: V3's bias step and the weights of three losses.

    `gamma` moves the selection bias (arXiv 2408.15664); `alpha` weighs the
    sequence-wise loss (V3 eq. 17), `switch` the loss of Switch Transformers
    (0.01 there), `z` the router z-loss of ST-MoE (0.001 there). V3 has neither.
    """

    gamma: float = 1e-3
    alpha: float = 1e-4
    switch: float = 0.0
    z: float = 0.0

    def loss(self, model: torch.nn.Module) -> torch.Tensor:
        """The weighted sum of the losses on the last training forward."""
        return balance.balance_loss(model, self.alpha, self.switch, self.z)


@dataclass
class Run:
    """A run directory and what every stage needs to write into it."""

    dir: Path
    seed: int
    log: MetricsLog
    fingerprint: str = ""
    checkpoint_seconds: float = 30.0
    load_every: int = 10
    progress: bool = True
    team: Team = field(default_factory=Team)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    guard: GuardConfig | None = None

    def checkpoint_path(self, stage: str) -> Path:
        """Where the state of a stage in progress lies."""
        return self.dir / "checkpoints" / stage

    def micro_batches(self, rows: int) -> list[slice]:
        """Which of a step's `rows` this rank computes, and in which pieces."""
        return self.team.slices(rows, self.compute.micro_rows)

    def accumulate(
        self,
        micro_batches: Iterable[Batch],
        terms: Callable[[Batch], Terms],
        totals: Mapping[str, int],
    ) -> dict[str, float]:
        """Gradients of this rank's part of a step; the means of the whole step.

        As :func:`r1lite.memory.accumulate.accumulate`; `totals` are the whole
        step's, of all ranks.
        """
        return self.team.sum(accumulate(micro_batches, terms, totals))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return self.compute.autocast(self.team.device)


@dataclass
class StageResult:
    """What a finished stage cost. Seconds exclude time lost to a kill."""

    name: str
    steps: int
    seconds: float
    tokens: int
    last: dict[str, Any] = field(default_factory=dict)


def run_stage(
    run: Run,
    name: str,
    model: R1Model,
    optim_config: optim.OptimConfig,
    steps: int,
    step_function: StepFunction,
    gamma: float = 0.0,
    scale: Callable[[int], float] | None = None,
    cut: Callable[[], None] | None = None,
) -> StageResult:
    """Run `steps` steps of a stage, from its checkpoint if there is one.

    `step_function(step, update)` accumulates gradients and calls `update()`
    (clip, optimizer step, bias step; returns the gradient norm) at least once.
    It returns numbers to log; "tokens" counts this step's tokens. `scale` gives
    the factor on the learning rate in place of the config's schedule; `cut` is
    called before the optimizers are built, to cut the model up further. With a
    guard, a step whose gradient norm is a spike changes no weight, and its row
    says why.
    """
    team = run.team
    run.compute.prepare_(model)
    team.spread_(model)
    if cut:
        cut()
    optimizers = optim.build(model, optim_config)
    saved_state = SavedState(run.checkpoint_path(name), run.fingerprint, team)
    start = saved_state.load(model, optimizers)
    rows = team.agree(lambda: run.log.rewind(name, start))
    spent = rows[-1]["time"] if rows else 0.0
    tokens = rows[-1]["tokens"] if rows else 0
    last: dict[str, Any] = rows[-1] if rows else {}
    load: list[torch.Tensor] = []
    refused: list[str] = []
    guard = Guard(run.guard) if run.guard else None
    if guard:
        guard.replay(rows, "grad_norm")

    def update() -> float:
        with team.watched(f"{name}: gradients"):
            norm = team.finish_backward_(model, optim_config.clip)
        # Every rank has the same norm, so all of them decide alike.
        reason = guard.judge(grad_norm=norm) if guard else None
        refused.extend([reason] if reason else [])
        optim.step(optimizers, norm, skip=reason is not None)
        load.append(balance.update_bias_(model, gamma))
        return norm

    model.train()
    began = saved = time.perf_counter()
    with _progress(run, name, start, steps) as tick:
        for step in range(start, steps):
            factor = scale(step) if scale else optim.lr_scale(optim_config, step, steps)
            optim.set_lr(optimizers, factor)
            load.clear()
            refused.clear()
            before = time.perf_counter()
            values = step_function(step, update)
            now = time.perf_counter()
            tokens += int(values.pop("tokens"))
            last = {
                "time": round(spent + now - began, 3),
                "tokens": tokens,
                "tokens_per_s": round(
                    (tokens - last.get("tokens", 0)) / (now - before)
                ),
                "lr": optimizers[0].param_groups[0]["lr"],
                **values,
                **_load_metrics(torch.stack(load).sum(0), step % run.load_every == 0),
            }
            if refused:
                last["skipped"] = refused[-1]
            if step % run.load_every == 0:
                last |= _slow(team)
            if team.first:
                run.log.append(name, step, **last)
            tick(last)
            due = now - saved >= run.checkpoint_seconds and step + 1 < steps
            if team.agree(lambda due=due: due):  # type: ignore[misc]
                saved_state.save(step + 1, model, optimizers)
                saved = time.perf_counter()
    saved_state.wait()
    model.eval()
    return StageResult(name, steps, last.get("time", 0.0), tokens, last)


def _slow(team: Team) -> dict[str, Any]:
    """Ranks that keep the others waiting: {"slow_ranks": {"3": 2.1}} or nothing."""
    own = team.lap()
    if team.mesh is None:
        return {}
    found = slow_ranks(own, team.mesh.world)
    return (
        {"slow_ranks": {str(r): round(x, 2) for r, x in found.items()}} if found else {}
    )


def _load_metrics(load: torch.Tensor, keep_all: bool) -> dict[str, Any]:
    """`load`: (routers, experts) token counts of one step.

    Routers that saw no token are left out of MaxVio: outside pretraining that is
    the MTP module's, and all of them when GRPO had nothing to learn from.
    """
    used = load[load.sum(-1) > 0]
    if used.numel() == 0:
        return {}
    values: dict[str, Any] = {
        "max_violation": round(float(balance.max_violation(used).mean()), 4)
    }
    if keep_all:
        share = load.float() / load.sum(-1, keepdim=True).clamp_min(1)
        values["load"] = [[round(v, 4) for v in row] for row in share.tolist()]
    return values


class _progress:
    """A progress bar that shows the step's most telling numbers."""

    SHOWN = ("loss", "reward", "accuracy", "length", "tokens_per_s")

    def __init__(self, run: Run, name: str, start: int, steps: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            disable=not (run.progress and run.team.first),
        )
        self._task = self._bar.add_task(name, total=steps, completed=start, info="")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self._bar.start()
        return self._tick

    def _tick(self, values: dict[str, Any]) -> None:
        info = "  ".join(
            f"{k} {values[k]:.4g}" if k != "tokens_per_s" else f"{values[k]:,} tok/s"
            for k in self.SHOWN
            if k in values
        )
        self._bar.update(self._task, advance=1, info=info)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
