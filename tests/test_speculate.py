"""Self-speculation: greedy's tokens, whatever the drafts are worth."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_model, token_ids

from r1lite.errors import R1Error
from r1lite.generation import generate
from r1lite.model import R1Model
from r1lite.mtp import mtp_loss
from r1lite.speculate import speculate


@pytest.fixture(scope="module")
def trained() -> R1Model:
    """Two phrases learnt by heart: the drafts are right more often than not."""
    torch.manual_seed(0)
    model = tiny_model(num_nextn_predict_layers=1).train()
    ids = token_ids(2, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        out = model(ids)
        logits = out.logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + mtp_loss(model, ids, out.hidden)).backward()
        optimizer.step()
    model.ids = ids  # type: ignore[assignment]
    return model.eval()


@pytest.mark.parametrize("length", [1, 2, 7])
def test_untrained_drafts_still_give_greedys_tokens(length: int) -> None:
    model = tiny_model(num_nextn_predict_layers=1)
    for seed in range(4):
        torch.manual_seed(seed)
        prompt = token_ids(1, length)[0].tolist()
        made = speculate(model, prompt, 20, stop_ids=[])
        assert made.tokens == generate(model, [prompt], 20, stop_ids=[])[0]
        assert made.accepted <= made.drafted


@pytest.mark.parametrize("new", [1, 2, 3, 18])
def test_good_drafts_give_greedys_tokens_in_fewer_passes(
    trained: R1Model, new: int
) -> None:
    prompt = trained.ids[1, :4].tolist()
    made = speculate(trained, prompt, new, stop_ids=[])
    assert made.tokens == generate(trained, [prompt], new, stop_ids=[])[0]
    assert len(made.tokens) == new
    if new == 18:
        assert made.accepted >= 0.7 * made.drafted
        # one token from the prompt's pass, one or two from each pass after it
        assert 1 + made.drafted + made.accepted - new in (0, 1)


def test_a_draft_is_what_the_mtp_module_says_without_a_cache(trained: R1Model) -> None:
    """Acceptance counted by hand, from full forwards over the finished text."""
    prompt = trained.ids[0, :3].tolist()
    made = speculate(trained, prompt, 15, stop_ids=[])
    ids = torch.tensor([prompt + made.tokens])
    with torch.no_grad():
        guess = trained.mtp_logits(ids, trained(ids).hidden).argmax(-1)[0]
    at, drafted, accepted = len(prompt) - 1, 0, 0
    while at + 2 < ids.shape[1]:  # state `at` drafts token at + 2
        right = bool(guess[at] == ids[0, at + 2])
        drafted, accepted = drafted + 1, accepted + right
        at += 2 if right else 1
    assert (made.drafted, made.accepted) == (drafted, accepted)


def test_it_stops_at_a_stop_id_drafted_or_not(trained: R1Model) -> None:
    prompt = trained.ids[0, :3].tolist()
    free = generate(trained, [prompt], 15, stop_ids=[])[0]
    for stop in dict.fromkeys(free):
        got = speculate(trained, prompt, 15, stop_ids=[stop]).tokens
        assert got == free[: free.index(stop) + 1]


def test_the_configs_end_of_text_stops_it_by_default() -> None:
    model = tiny_model(num_nextn_predict_layers=1)
    free = generate(model, [[3, 4]], 15, stop_ids=[])[0]
    ended = R1Model(model.config.with_(eos_token_id=free[2])).eval()
    ended.load_state_dict(model.state_dict())
    got = speculate(ended, [3, 4], 15).tokens
    assert got == generate(ended, [[3, 4]], 15)[0] == free[: free.index(free[2]) + 1]


def test_what_cannot_work_is_refused() -> None:
    model = tiny_model(num_nextn_predict_layers=1)
    with pytest.raises(R1Error, match="no MTP module"):
        speculate(tiny_model(), [1], 4)
    with pytest.raises(R1Error, match="empty"):
        speculate(model, [], 4)
    with pytest.raises(R1Error, match="context of 64"):
        speculate(model, [1] * 60, 5)
