"""From answers and their advantages to updates of the policy.

The gradient of a step does not depend on how its answers are split into
micro-batches or ranks: every piece is weighed by what the whole step holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from r1lite.model import R1Model
from r1lite.training.agreement import Experts, replayed, sampler_pass
from r1lite.training.loop import Run, Update
from r1lite.training.policy_loss import PolicyConfig, policy_loss, policy_units
from r1lite.training.rollout import Rollout, collate
from r1lite.training.sft import token_logprobs

STATISTICS = ("clip_frac", "kl", "policy_gap", "entropy")  # means over tokens


class UpdateConfig(PolicyConfig):
    """A step's answers are read once, in `minibatches` updates.

    `temperature` is that of the samples, and so of the log-probabilities.
    `routing_replay` trains with the experts that the sampler's way picks.
    """

    minibatches: int = 1
    temperature: float = 1.0
    routing_replay: bool = False


def by_length(items: Sequence[Rollout], chosen: list[int], ranks: int) -> list[int]:
    """`chosen` in an order that leaves little padding in a micro-batch.

    Every rank's part begins with its shortest and ends with its longest answers,
    so no rank waits for another one's long ones.
    """
    order = sorted(chosen, key=lambda k: len(items[k].prompt) + len(items[k].response))
    return [k for rank in range(ranks) for k in order[rank::ranks]]


class PolicyUpdate:
    """Trains `model` on answers, their advantages and, if any, a reference."""

    def __init__(
        self, run: Run, model: R1Model, pad_id: int, config: UpdateConfig
    ) -> None:
        self.run, self.model, self.pad_id, self.config = run, model, pad_id, config
        self.reference: R1Model | None = None

    def train(
        self, items: list[Rollout], advantages: Tensor, keep: list[int], update: Update
    ) -> dict[str, float]:
        """Update on the answers `keep`; statistics of the last minibatch.

        The others (their group agrees, or they were cut off) count nowhere: not
        in the mean, not in the KL term. Only where fewer are left than there are
        ranks some of them fill up, with an advantage of 0.
        """
        stats: dict[str, float] = {"loss": 0.0, "grad_norm": 0.0}
        if not keep:
            return stats | {"grad_norm": update()}
        ranks = self.run.team.ranks
        if len(keep) < ranks:  # every rank has to compute something
            rest = sorted(set(range(len(items))) - set(keep))
            advantages = advantages.clone()
            advantages[rest] = 0.0
            keep = keep + rest[: ranks - len(keep)]
        experts = self._experts(items)
        pieces = max(1, min(self.config.minibatches, len(keep) // ranks))
        for part in torch.tensor(keep).tensor_split(pieces):
            chosen = by_length(items, part.tolist(), ranks)
            picks = [e[chosen] for e in experts]
            rows = [items[k] for k in chosen]
            stats |= self.gradients(rows, advantages[chosen], picks)
            stats["grad_norm"] = update()
        return stats

    def gradients(
        self, items: list[Rollout], advantages: Tensor, experts: Experts | None = None
    ) -> dict[str, float]:
        """Add up those of the loss, in micro-batches; returns its statistics."""
        answers = [len(r.response) for r in items]
        pieces = self.run.micro_batches(len(items))
        units = policy_units(answers, self.config)
        if self.config.aggregate == "batch":
            units = len(pieces) * self.run.team.ranks
        totals = {"loss": units} | dict.fromkeys(STATISTICS, sum(answers))

        def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
            picks = [e[rows] for e in experts or []]
            loss, stats = self._loss(items[rows], advantages[rows], picks)
            tokens = sum(answers[rows])
            found = {k: (torch.tensor(v), tokens) for k, v in stats.items()}
            return found | {"loss": (loss, policy_units(answers[rows], self.config))}

        return self.run.accumulate(pieces, terms, totals)

    def _loss(
        self, items: list[Rollout], advantages: Tensor, experts: Experts
    ) -> tuple[Tensor, dict[str, float]]:
        c, device = self.config, self.run.team.device
        batch = collate(items, self.pad_id)
        where = (
            batch.ids.to(device),
            batch.prompt_lengths.to(device),
            batch.lengths.to(device),
            c.temperature,
        )
        width = batch.ids.size(1) - 1
        forced = replayed(self.model, [e[:, :width] for e in experts])
        with self.run.autocast():
            with forced if experts else nullcontext():
                logprobs, mask = token_logprobs(self.model, *where)
            ref = None
            if self.reference is not None:
                with torch.no_grad():
                    ref, _ = token_logprobs(self.reference, *where)
        old, weights = batch.old_logprobs.to(device), advantages.to(device)
        return policy_loss(logprobs, old, weights, mask, c, ref)

    def _experts(self, items: list[Rollout]) -> Experts:
        """What the routers pick for all answers before the first update."""
        if not self.config.routing_replay:
            return []
        self.model.eval()
        with self.run.autocast():
            _, experts = sampler_pass(self.model, items, self.pad_id)
        self.model.train()
        return experts
