"""Runs the model on one step's work: flat rows in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from r1lite.model import R1Model
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.layer import MoE
from r1lite.serving.cache import LatentPages, Ragged, Span
from r1lite.serving.sequence import Work
from r1lite.serving.steady import dispatch_steady, fill_up

if TYPE_CHECKING:
    from r1lite.attention.cache import LatentCache


class Runner:
    """The model and its paged cache. It knows positions and pages, not requests.

    On a CPU the MoE layers get a dispatcher whose rows do not feel their company.
    """

    def __init__(
        self, model: R1Model, num_pages: int, page_size: int, mtp: bool = False
    ) -> None:
        self.model = model.eval()
        self.pages = LatentPages(model, num_pages, page_size, mtp)
        self.device = self.pages.data.device
        for module in model.modules():
            local = isinstance(module, MoE) and module.dispatcher is dispatch_local
            if local and self.device.type == "cpu":
                module.dispatcher = dispatch_steady  # type: ignore[assignment]

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> Tensor:
        """Compute all rows; the logits (outputs, vocab) where they are wanted.

        The outputs of `work` follow one another, each as its last rows.
        """
        copies = [w.copy for w in work if w.copy]
        if copies:
            self.pages.copy(*zip(*copies, strict=True))
        spans = [Span(w.start, w.count, w.sample.pages) for w in work]
        self.batch = Ragged(self.pages, spans)
        ids = self._rows([i for w in work for i in w.ids])
        self.hidden = self.model.hidden(
            ids, position_ids=self.batch.positions[None], cache=self._cache()
        )
        wanted: list[int] = []
        end = 0
        for w in work:
            end += w.count
            wanted += range(end - w.outputs, end)
        return self._logits(self.hidden, wanted)

    @torch.inference_mode()
    def draft(self, following: Sequence[int], wanted: Sequence[int]) -> list[int]:
        """The MTP block's guess at the token after the one that follows a row.

        Reads the states that `run` left, and writes the block's own latents.

        Args:
            following: for every row of the step, the token after it.
            wanted: rows whose guess is wanted.
        """
        model = self.model
        assert model.mtp is not None
        turn = model.rope(self.batch.positions[None], self.hidden.dtype)
        embeds = model.embed_tokens(self._rows(following))
        states = model.mtp(embeds, self.hidden, turn, None, self._cache())
        return cast("list[int]", self._logits(states, wanted).argmax(-1).tolist())

    def _rows(self, ids: Sequence[int]) -> Tensor:
        """(1, rows) ids, filled up with the first."""
        fill = [ids[0]] * (self.batch.rows - len(ids))
        return torch.tensor([[*ids, *fill]], device=self.device)

    def _logits(self, states: Tensor, wanted: Sequence[int]) -> Tensor:
        """states: (1, rows, hidden) -> (wanted, vocab)."""
        filled = fill_up(len(wanted))
        if list(wanted) == list(range(len(wanted))) and filled == states.shape[1]:
            return self.model.lm_head(states[0])[: len(wanted)]
        if not wanted:
            return states.new_empty(0, self.model.config.vocab_size)
        rows = torch.tensor(
            [*wanted, *[0] * (filled - len(wanted))], device=self.device
        )
        return self.model.lm_head(states[0, rows])[: len(wanted)]

    def _cache(self) -> LatentCache:
        """The batch, which has the one method MLA asks a cache for."""
        return cast("LatentCache", self.batch)
