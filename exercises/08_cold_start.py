"""Exercises of chapter 8: what is a target, who speaks, what is bought."""

import torch.nn.functional as F
from torch import Tensor

from r1lite.data.chat import Example
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model


# %% 8.1 | Whose tokens are trained on | predict | level 1 | 5 min
# Demonstrations of chain/3: a question with its control tokens has 17 tokens, a
# reply at once 4 (two tags, a digit, the end), a reply with reasoning 17. Six of
# ten answer at once. Of all tokens that are *trained on*, what share belongs to
# replies at once? A number between 0 and 1.
SHARE_AT_ONCE = None  # between 0 and 1


# %% 8.2 | A demonstration no user can forge | fill | level 2 | 15 min | swaps r1lite.data.chat.example
# A question with its reply, as ids and mask:
#   bos user question assistant [think reasoning think_end] answer .. answer_end eos
# The words are the tokenizer's: tokenizer.bos_id, user_id, assistant_id, think_id,
# think_end_id, answer_id, answer_end_id, eos_id. The block of the reasoning is left
# out when `reasoning` is None. `mask` has a bool for each id: True for the reply,
# the end token included, False for everything up to and with assistant_id. Text may
# hold anything, control tokens written out in full included; it stays text.
def example(
    tokenizer: R1Tokenizer, question: str, reasoning: str | None, answer: str
) -> Example:
    """The conversation as `Example(ids, mask)`."""
    raise NotImplementedError("8.2: control ids between encoded texts, and a mask")


# %% 8.3 | The loss on replies | fill | level 2 | 20 min | swaps r1lite.training.sft.masked_loss
# Rows of packed conversations. ids (rows, seq) int64; mask (rows, seq) bool, True
# where token i is a target; documents (rows, seq) int64, equal ids belong together.
# The state at place i predicts token i + 1. Return the mean cross-entropy over all
# targets of all rows, a scalar with its gradient; 0 if there is no target at all.
# Tools: model.hidden(ids, document_ids=...) gives states (rows, seq, hidden), and
# model.lm_head turns states of any leading shape into logits.
def masked_loss(model: R1Model, ids: Tensor, mask: Tensor, documents: Tensor) -> Tensor:
    """The mean over all targets, a scalar in nats."""
    raise NotImplementedError("8.3: shift, pick the targets' states, one mean")


# %% 8.4 | One place off | bug | level 2 | 10 min
# What each row's reply costs, in nats: for an evaluation, which looks at one row
# after the other. logits (rows, seq, vocab) of the whole rows; ids and mask
# (rows, seq), mask True where token i is a target. Returns (rows,) sums. It runs,
# the numbers look like nats, and the model seems a little better than it is. Find
# the one mistake.
def reply_nats(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Nats of each row's targets, (rows,)."""
    logp = logits[:, :-1].log_softmax(-1)
    nats = -logp.gather(-1, ids[:, 1:, None])[..., 0]
    return (nats * mask[:, :-1]).sum(-1)


# %% 8.5 | What a mean of means learns | predict | level 3 | 10 min
# Demonstrations of chain/4: half answer at once, with 4 tokens, half reason, with
# 23. The loss is, as in many loops, the mean of each example's mean. A model that
# minimises it gives which probability to <think> as the first token of a reply?
CHANCE_TO_THINK = None  # between 0 and 1


# %% 8.6 | Eight demonstrations, many times | measure | level 2 | 20 min
# The smallest language model there is: torch.nn.Embedding(vocab, vocab), row i holds
# the logits of the token after token i. Load R1Tokenizer from
# chapters/fixtures/nano/base and take Demonstrations(DemoConfig(answer_only=0,
# wrong_steps=0), {"chain/3": 1.0}, seed=0): numbers 0 to 7 to train on, 100 to 163
# as held out. Targets are the replies' tokens (chat.example). Start from zeros,
# torch.optim.SGD(lr=30), full batch, 200 steps, the loss a mean over all targets.
# Look at both losses before every step. Report how far the held-out loss is, at the
# end, above its lowest (nats), and what the difference between the two is made of:
#   "form": the model has not learnt the tags and the end token yet;
#   "unseen": pairs of tokens that the eight never show, made ever less likely;
#   "seen": the eight themselves are forgotten again.
RISE = None  # nats
WHY = None  # "form", "unseen" or "seen"
