"""One pipeline stage of an R1 model: its layers, and the loss if it is the last.

The balance loss is a mean over the MoE layers of all stages. So it rides along
with the activations, each stage adds its layers' part, and the last stage adds it
to the loss: autograd then finds its way back through all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from r1lite.attention.mask import additive_mask, positions_of
from r1lite.loss import head_loss
from r1lite.model import R1Model
from r1lite.mtp import mtp_loss, mtp_targets
from r1lite.parallel.cut import layers_of

Balance = Callable[[nn.Module], Tensor]
TERMS = ("loss", "mtp_loss", "balance")


class Stage(nn.Module):
    """Some neighbouring layers of a model, for one micro-batch at a time.

    Args:
        model: what this rank holds of the model, with its whole names.
        index: of `count` stages.
        mtp_weight: of the MTP loss, V3's lambda; 0 leaves it out.
        balance: the weighted balance loss of the layers it is given.
        autocast: makes the context of the forward pass.

    Attributes:
        units: over how many tokens, tokens two steps on and rows of all ranks the
            terms of the loss are means; set before every step.
        means: (3,) the shares of the terms so far, on the last stage.
    """

    def __init__(
        self,
        model: R1Model,
        index: int,
        count: int,
        mtp_weight: float = 0.0,
        balance: Balance | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        config = model.config
        self.model, self.mtp_weight, self.balance = model, mtp_weight, balance
        self.first, self.last, self.autocast = index == 0, index == count - 1, autocast
        self.mine = layers_of(config.num_hidden_layers, count, index)
        # The balance loss is a mean over the MoE layers of all stages.
        moe = [i for i in range(config.num_hidden_layers) if config.is_moe(i)]
        self.moe_share = len(set(moe) & set(self.mine)) / max(1, len(moe))
        self.units = dict.fromkeys(TERMS, 1)
        self.means = torch.zeros(len(TERMS))

    def forward(
        self,
        x: Tensor | None = None,
        balance: Tensor | None = None,
        *,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What goes to the next stage, or the loss at the end.

        Every stage is given the tokens: positions and masks are made where they
        are needed, only what a layer computed travels.

        Args:
            x: (rows, seq, hidden) from the stage before; None for the first.
            balance: () the balance losses of the stages before.
            ids, targets, documents: (rows, seq) of this micro-batch.

        Returns:
            x and balance, or () this micro-batch's share of the loss.
        """
        with self.autocast():
            if x is None:
                x = self.model.embed_tokens(ids)
            turn = self.model.rope(positions_of(ids, None, 0), x.dtype)
            mask = additive_mask(ids.shape[1], ids.shape[1], None, documents, x)
            for i in self.mine:
                x = self.model.layers[i](x, turn, mask)
            own = self._balance(len(ids)).to(x.device)
            # A new tensor even where there is nothing to add: torch cuts the
            # graph off at what a stage gives back.
            balance = own + 0.0 if balance is None else balance + own
            if not self.last:
                return x, balance
            return self._loss(self.model.norm(x), balance, ids, targets, documents)

    def _balance(self, rows: int) -> Tensor:
        """() this stage's part of the mean over all MoE layers and rows."""
        if self.balance is None or not self.moe_share:
            return torch.zeros(())
        here = nn.ModuleList(self.model.layers[i] for i in self.mine)
        return self.balance(here) * (self.moe_share * rows / self.units["balance"])

    def _loss(
        self,
        hidden: Tensor,
        balance: Tensor,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None,
    ) -> Tensor:
        given = hidden.flatten(0, 1), self.model.lm_head, targets.flatten()
        loss = head_loss(*given, "sum")
        loss, ahead = loss / self.units["loss"], loss.new_zeros(())
        if self.mtp_weight and self.model.mtp is not None:
            mean = mtp_loss(self.model, ids, hidden, document_ids=documents)
            here = mtp_targets(ids, documents)[1].sum()
            ahead = mean * here / max(1, self.units["mtp_loss"])
        self.means += torch.stack((loss, ahead, balance)).detach().to(self.means)
        return loss + self.mtp_weight * ahead + balance
