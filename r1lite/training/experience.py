"""What PPO learns from: sampled answers with a value and an advantage a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r1lite.model import R1Model
from r1lite.training.gae import gae, token_rewards, whiten
from r1lite.training.loop import Run
from r1lite.training.ppo_loss import answer_mask, explained_variance, read_tokens
from r1lite.training.reward_model import ScoreModel
from r1lite.training.rollout import Rollout, collate
from r1lite.training.sft import token_logprobs

if TYPE_CHECKING:
    from r1lite.training.ppo import PPOConfig


@dataclass
class Experience:
    """One step's answers, all that the updates read.

    ids (batch, seq); the rest (batch, seq - 1), 0 or False outside the answers.
    """

    ids: Tensor
    mask: Tensor
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, chosen: Tensor) -> Experience:
        """The answers `chosen`, (n,) indices."""
        return Experience(**{name: x[chosen] for name, x in vars(self).items()})


@torch.no_grad()
def experience(
    run: Run,
    model: ScoreModel,
    reference: R1Model | None,
    items: list[Rollout],
    scores: Tensor,
    config: PPOConfig,
) -> tuple[Experience, dict[str, float]]:
    """Values, rewards and advantages of sampled answers; scores (answers,).

    The old log-probabilities are the sampler's own. Each rank reads its own answers
    and has all in the end: advantages are whitened over the whole step. Also returns
    what of it the log wants.
    """
    device = run.team.device
    batch = collate(items, model.config.pad_token_id or 0)
    ids = batch.ids.to(device)
    starts, ends = batch.prompt_lengths.to(device), batch.lengths.to(device)
    mask, old = answer_mask(ids, starts, ends), batch.old_logprobs.to(device)
    values, ref = torch.zeros_like(old), torch.zeros_like(old)
    pieces = run.micro_batches(len(items))
    for rows in pieces:
        with run.autocast():
            read = read_tokens(model, ids[rows], mask[rows], config.temperature)
            values[rows] = values[rows].masked_scatter(mask[rows], read.values)
            if reference is not None:
                where = (ids[rows], starts[rows], ends[rows], config.temperature)
                ref[rows], _ = token_logprobs(reference, *where)
    values = _of_all_ranks(run, values, pieces)
    if reference is not None:
        ref = _of_all_ranks(run, ref, pieces)
    rewards = token_rewards(
        scores.to(device), old, None if reference is None else ref, mask, config.kl_coef
    )
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    seen = {"explained": explained_variance(values[mask], returns[mask])}
    if reference is not None:
        seen["kl"] = float((old - ref)[mask].mean())
    if config.whiten:
        advantages = whiten(advantages, mask)
    return Experience(ids, mask, old, values, advantages, returns), seen


def _of_all_ranks(run: Run, x: Tensor, pieces: list[slice]) -> Tensor:
    """`x` (rows, seq), of which this rank filled its own `pieces`, whole."""
    mine = [row.cpu() for rows in pieces for row in x[rows]]
    return torch.stack(run.team.gather(mine)).to(x.device)
