"""Who gets the token: the router of DeepSeek-V3, and its two ancestors.

V3 (arXiv 2412.19437, section 2.1.2) scores each expert with a sigmoid, adds a
bias only to *choose*, and weighs the chosen experts by their unbiased scores.
The softmax router of V2 and of the article is the same code with
``scoring_func="softmax"`` and ``topk_method="greedy"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.config import R1Config


class Routing(NamedTuple):
    """Where each token goes. T tokens, K picks per token, E experts."""

    weights: Tensor  # (T, K) float32, what each picked expert counts for
    experts: Tensor  # (T, K) int64
    scores: Tensor  # (T, E) float32, unbiased affinities
    counts: Tensor  # (E,) int64, tokens per expert


class LastScores(NamedTuple):
    """What the balance losses need from the last training forward."""

    scores: Tensor  # (batch, seq, E) float32, with its graph
    top_k: int
    logits: Tensor  # (batch, seq, E) float32, with its graph
    experts: Tensor  # (batch, seq, K) int64, the picks that were made


def keep_best_groups(choice: Tensor, n_group: int, keep: int, best: int) -> Tensor:
    """Bar every expert outside a token's `keep` best groups.

    A group's score is the sum of its `best` highest members: 2 in V3, 1 (the
    maximum) in V2. Barred experts get -inf: with 0, as in older code, an
    expert whose biased score is negative loses to a barred one.

    Args:
        choice: (T, E) scores to choose by. Returns the same shape.
    """
    grouped = choice.unflatten(-1, (n_group, -1))
    group_scores = grouped.topk(best, dim=-1).values.sum(-1)
    kept = group_scores.topk(keep, dim=-1, sorted=False).indices
    barred = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, kept, False)
    return grouped.masked_fill(barred.unsqueeze(-1), float("-inf")).flatten(-2)


class Router(nn.Module):
    """Scores experts, picks K of them, weighs them.

    ``weight`` (E, hidden) learns by gradient. ``e_score_correction_bias`` (E,)
    is a float32 buffer that only :mod:`r1lite.moe.balance` changes.
    """

    e_score_correction_bias: Tensor
    counts: Tensor

    def __init__(self, config: R1Config) -> None:
        super().__init__()
        n_experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.n_group = config.n_group
        self.topk_group = config.topk_group
        self.normalize = config.norm_topk_prob
        self.scaling = config.routed_scaling_factor
        self.scoring = config.scoring_func
        self.method = config.topk_method
        self.weight = nn.Parameter(torch.empty(n_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        bias = torch.zeros(n_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)
        # Not saved: every optimizer step ends with zero counts, so a resumed
        # run starts from the same state without them.
        counts = torch.zeros(n_experts, dtype=torch.int64)
        self.register_buffer("counts", counts, persistent=False)
        self.last: LastScores | None = None

    def forward(self, x: Tensor) -> Routing:
        """Route x: (..., hidden). Everything here is float32."""
        flat = x.reshape(-1, x.shape[-1])
        logits = F.linear(flat.float(), self.weight.float())
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(-1)
        experts = self.choose(scores.detach())
        weights = scores.gather(-1, experts)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.scaling != 1.0:
            weights = weights * self.scaling
        counts = torch.bincount(experts.flatten(), minlength=scores.shape[-1])
        routing = Routing(weights, experts, scores, counts)
        if self.training and torch.is_grad_enabled():
            self.record(x.shape[:-1], logits, routing)
        return routing

    @torch.no_grad()
    def choose(self, scores: Tensor) -> Tensor:
        """The K experts of each token: scores (T, E) -> (T, K) int64."""
        best = 1
        if self.method == "noaux_tc":
            scores = scores + self.e_score_correction_bias
            best = 2
        if self.method != "greedy" and self.topk_group < self.n_group:
            scores = keep_best_groups(scores, self.n_group, self.topk_group, best)
        return scores.topk(self.top_k, dim=-1, sorted=False).indices

    def record(self, shape: torch.Size, logits: Tensor, routing: Routing) -> None:
        """Count, and keep what the balance losses need, by (batch, seq) token."""
        self.counts += routing.counts
        logits, scores, experts = (
            t.view(*shape, t.shape[-1])
            for t in (logits, routing.scores, routing.experts)
        )
        self.last = LastScores(scores, self.top_k, logits, experts)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Router:
        """Move with the model, but never let `.to(bfloat16)` round the bias.

        The bias moves by 0.001 a step; bfloat16 cannot add that to 0.5.
        """
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the last forward's graph behind."""
        return {**self.__dict__, "last": None}
