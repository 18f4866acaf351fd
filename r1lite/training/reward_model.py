"""A reward model: R1's trunk with one number where the logits were.

Trained on comparisons by the Bradley-Terry likelihood and read at the last real
token, as InstructGPT (arXiv 2203.02155, section 3.5) does and as R1's model for
helpfulness (arXiv 2501.12948 v2, appendix B) must. A causal model's first token
has seen nothing of the answer; its last has seen all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.training.loop import Run, StageResult, Update, run_stage
from r1lite.training.optim import OptimConfig
from r1lite.training.preferences import Pair
from r1lite.training.rollout import Rollout

PairAt = Callable[[int], Pair]
ROWS = 256  # answers scored at once


class ScoreModel(R1Model):
    """An R1Model that also says one number at every position.

    The number is a reward when it is read at an answer's last token, and the
    value of a state when PPO reads it before each token. The head starts at 0:
    no opinion, a Bradley-Terry loss of log 2.
    """

    def __init__(self, config: R1Config) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    @classmethod
    def of(cls, model: R1Model) -> ScoreModel:
        """A copy of `model` with a fresh head, on its device and in its dtype."""
        with torch.random.fork_rng(devices=[]):  # initial weights are thrown away
            copy = cls(model.config)
        weight = model.embed_tokens.weight
        state = model.state_dict()
        copy.to(weight.device, weight.dtype)
        copy.load_state_dict(state | {"score.weight": copy.score.weight})
        return copy

    def trunk_state(self) -> dict[str, Tensor]:
        """The weights without the head's: those of a plain R1Model."""
        return {k: v for k, v in self.state_dict().items() if k != "score.weight"}

    def scores(self, ids: Tensor) -> Tensor:
        """ids (batch, seq), padded on the right -> (batch, seq), in float32."""
        return self.score(self.hidden(ids)).squeeze(-1).float()

    def rewards(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The score at each row's last real token, (batch,).

        lengths: (batch,), real tokens of a row, at least 1.
        """
        states = self.hidden(ids)[
            torch.arange(len(ids), device=ids.device), lengths - 1
        ]
        return self.score(states).squeeze(-1).float()


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids (batch, longest), lengths (batch,)) of rows of different lengths."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids, lengths


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Minus the mean log-probability that the better reply wins; both (pairs,).

    P(chosen wins) = sigmoid(r_chosen - r_rejected): InstructGPT, eq. 1. Only the
    difference counts, so a reward model's zero means nothing.
    """
    return -F.logsigmoid(chosen - rejected).mean()


def pair_rewards(model: ScoreModel, pairs: Sequence[Pair], pad_id: int) -> Tensor:
    """(pairs, 2): the rewards of the chosen and of the rejected replies."""
    rows = [p.prompt + r for p in pairs for r in (p.chosen, p.rejected)]
    ids, lengths = pad_right(rows, pad_id)
    device = model.score.weight.device
    return model.rewards(ids.to(device), lengths.to(device)).view(-1, 2)


class RewardModelConfig(Section):
    """Section of a reward model's training. A step compares `pairs` pairs."""

    steps: int = 100
    pairs: int = 32
    optim: OptimConfig = OptimConfig(lr=1e-3, weight_decay=0.01)


def train_reward_model(
    run: Run,
    model: ScoreModel,
    config: RewardModelConfig,
    pair_at: PairAt,
    name: str = "reward",
) -> StageResult:
    """Fit `model` in place; `pair_at(i)` gives the i-th pair, any i >= 0.

    Several ranks leave it cut up: `run.team.whole(model)` puts it together.

    Raises:
        R1Error: a step has no pairs, or fewer than the run has ranks.
    """
    if config.pairs < 1:
        raise R1Error(f"reward.pairs: {config.pairs} make no step; give at least 1")
    if config.pairs < run.team.ranks:
        raise R1Error(
            f"reward.pairs: {config.pairs} are too few for {run.team.ranks} ranks; "
            "give at least one pair to each"
        )
    pad_id = model.config.pad_token_id or 0

    def step(i: int, update: Update) -> dict[str, float]:
        pairs = [pair_at(i * config.pairs + j) for j in range(config.pairs)]

        def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
            with run.autocast():
                good, bad = pair_rewards(model, pairs[rows], pad_id).unbind(-1)
            count, right = len(good), (good > bad).float().mean()
            return {
                "loss": (bradley_terry_loss(good, bad), count),
                "accuracy": (right, count),
            }

        totals = {"loss": len(pairs), "accuracy": len(pairs)}
        means = run.accumulate(run.micro_batches(len(pairs)), terms, totals)
        tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
        return {**means, "grad_norm": update(), "tokens": tokens}

    return run_stage(run, name, model, config.optim, config.steps, step)


@torch.no_grad()
def score_pairs(model: ScoreModel, pairs: Sequence[Pair]) -> Tensor:
    """(pairs, 2) rewards of chosen and rejected, without gradients, in batches."""
    model.eval()
    size, pad_id = ROWS // 2, model.config.pad_token_id or 0
    found = [
        pair_rewards(model, pairs[at : at + size], pad_id)
        for at in range(0, len(pairs), size)
    ]
    return torch.cat(found).cpu()


@torch.no_grad()
def score_rollouts(model: ScoreModel, items: Sequence[Rollout]) -> Tensor:
    """(answers,) rewards of sampled answers: what PPO optimises without a verifier."""
    model.eval()
    device, pad_id = model.score.weight.device, model.config.pad_token_id or 0
    found = []
    for at in range(0, len(items), ROWS):
        rows = [r.prompt + r.response for r in items[at : at + ROWS]]
        ids, lengths = pad_right(rows, pad_id)
        found.append(model.rewards(ids.to(device), lengths.to(device)))
    return torch.cat(found).cpu()
