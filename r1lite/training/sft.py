"""Supervised fine-tuning on conversations: the cold start of R1.

Only the assistant's tokens are trained on (R1, arXiv 2501.12948, section 2.3.1,
and the mask that every chat model needs). The loss is a mean over all trained
tokens of the step, so it does not depend on how examples are packed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from r1lite.data.chat import Example
from r1lite.data.packing import MaskedRows, pack_examples
from r1lite.loss import head_loss
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.training.loop import BalanceConfig, Run, StageResult, Update, run_stage
from r1lite.training.optim import OptimConfig

ExampleAt = Callable[[int], Example]


class SFTConfig(Section):
    """Section `[sft]`: a step takes conversations up to `tokens` tokens in all.

    Counting tokens, not examples, gives two mixtures the same budget.
    """

    steps: int = 400
    tokens: int = 4096
    seq_len: int = 256
    balance: BalanceConfig = BalanceConfig()
    optim: OptimConfig = OptimConfig(name="muon")


def masked_loss(model: R1Model, ids: Tensor, mask: Tensor, documents: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens where `mask`; all (rows, seq).

    Logits are made only where a target is trained on: the head is a large
    part of a small model's cost.
    """
    hidden = model.hidden(ids[:, :-1], document_ids=documents[:, :-1])
    wanted = mask[:, 1:]
    total = head_loss(hidden[wanted], model.lm_head, ids[:, 1:][wanted], "sum")
    return total / wanted.sum().clamp(min=1)  # of rows without a target: 0


def take_tokens(example_at: ExampleAt, first: int, tokens: int) -> list[Example]:
    """Examples `first`, `first + 1`, … whose lengths reach `tokens` in all.

    An example has at least one token, so ranges `tokens` apart never overlap.
    """
    taken: list[Example] = []
    total = 0
    while total < tokens:
        taken.append(example_at(first + len(taken)))
        total += len(taken[-1].ids)
    return taken


def sft(
    run: Run, name: str, model: R1Model, config: SFTConfig, example_at: ExampleAt
) -> StageResult:
    """Fine-tune in place. `example_at(i)` gives the i-th example, any i >= 0."""

    def step(i: int, update: Update) -> dict[str, float]:
        examples = take_tokens(example_at, i * config.tokens, config.tokens)
        means = masked_step(run, model, examples, config.seq_len, config.balance)
        tokens = sum(len(e.ids) for e in examples)
        return {"loss": means["loss"], "grad_norm": update(), "tokens": tokens}

    return run_stage(
        run, name, model, config.optim, config.steps, step, config.balance.gamma
    )


def masked_step(
    run: Run,
    model: R1Model,
    examples: list[Example],
    seq_len: int,
    balance: BalanceConfig | None = None,
) -> dict[str, float]:
    """Gradients of one step on packed examples, this rank's rows of them.

    Returns:
        "loss", the mean over the trained tokens of the whole step; "balance".
    """
    packed = _at_least(run.team.ranks, pack_examples(examples, seq_len, run.seed))
    totals = {"loss": int(packed.mask[:, 1:].sum())}
    if balance is not None:
        totals["balance"] = len(packed.ids)

    def terms(rows: slice) -> dict[str, tuple[Tensor, int]]:
        device = run.team.device
        parts = (packed.ids, packed.mask, packed.document_ids)
        ids, mask, documents = (x[rows].to(device) for x in parts)
        with run.autocast():
            loss = masked_loss(model, ids, mask, documents)
        found = {"loss": (loss, int(mask[:, 1:].sum()))}
        if balance is not None:
            found["balance"] = (balance.loss(model).to(device), len(ids))
        return found

    return run.accumulate(run.micro_batches(len(packed.ids)), terms, totals)


def _at_least(rows: int, packed: MaskedRows) -> MaskedRows:
    """Every rank needs a row to compute: copies fill up, without a target."""
    missing = rows - len(packed.ids)
    if missing <= 0:
        return packed
    again = torch.tensor([*range(len(packed.ids)), *[0] * missing])
    mask = packed.mask[again]
    mask[-missing:] = False
    return MaskedRows(
        packed.ids[again], packed.document_ids[again], packed.positions[again], mask
    )


def token_logprobs(
    model: R1Model,
    ids: Tensor,
    prompt_lengths: Tensor,
    lengths: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of response tokens: (batch, seq - 1) each, and their mask.

    `ids` (batch, seq) holds prompt then response then padding on the right;
    a causal model needs no padding mask for it. Entry [i, t] belongs to the
    token at t + 1.
    """
    at = torch.arange(1, ids.size(1), device=ids.device)
    mask = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    hidden = model.hidden(ids[:, :-1])
    found = hidden[mask], model.lm_head, ids[:, 1:][mask]
    picked = -head_loss(*found, "none", temperature)
    return torch.zeros(mask.shape, device=ids.device).masked_scatter(mask, picked), mask
