"""Multi-token prediction: alignment, borders, gradient."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_model, token_ids

from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.mtp import mtp_loss, mtp_targets


@pytest.fixture
def model() -> R1Model:
    return tiny_model(num_nextn_predict_layers=1)


def test_shapes(model: R1Model) -> None:
    ids = token_ids(2, 6)
    hidden = model(ids).hidden
    assert model.mtp_hidden(ids, hidden).shape == (2, 5, 32)
    assert model.mtp_logits(ids, hidden).shape == (2, 5, 61)


def test_the_module_is_what_section_2_2_writes(model: R1Model) -> None:
    ids = token_ids(2, 6)
    hidden, mtp = model(ids).hidden, model.mtp
    assert mtp is not None
    pair = (mtp.enorm(model.embed_tokens(ids[:, 1:])), mtp.hnorm(hidden[:, :-1]))
    x = torch.cat(pair, -1) @ mtp.eh_proj.weight.T
    turn = model.rope(torch.arange(5).unsqueeze(0), x.dtype)
    want = mtp.norm(mtp.block(x, turn))
    torch.testing.assert_close(model.mtp_hidden(ids, hidden), want)


def test_position_i_sees_token_i_plus_1_and_no_further(model: R1Model) -> None:
    ids = token_ids(1, 8)
    hidden = model(ids).hidden.detach()
    before = model.mtp_hidden(ids, hidden)
    ids[0, 5] = (ids[0, 5] + 1) % 61
    moved = (model.mtp_hidden(ids, hidden) - before).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 3


def test_targets_stop_at_document_borders() -> None:
    ids = torch.tensor([[10, 11, 12, 13, 14, 15, 16]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    targets, valid = mtp_targets(ids, documents)
    assert targets.tolist() == [[12, 13, 14, 15, 16]]
    # tokens (0,1,2) agree; (1,2,3) and (2,3,4) cross; the rest is document 1
    assert valid.tolist() == [[True, False, False, True, True]]
    _, valid = mtp_targets(ids, documents, torch.tensor([[1, 1, 0, 1, 1, 1, 0]]))
    assert valid.tolist() == [[False, False, False, True, False]]
    _, valid = mtp_targets(ids)
    assert valid.all()


def test_loss_by_hand(model: R1Model) -> None:
    ids = token_ids(2, 7)
    hidden = model(ids).hidden
    scores = model.mtp_logits(ids, hidden).log_softmax(-1)
    picked = [-scores[b, i, ids[b, i + 2]] for b in range(2) for i in range(5)]
    want = torch.stack(picked).mean()
    torch.testing.assert_close(mtp_loss(model, ids, hidden), want)
    keep = torch.zeros(2, 7)
    keep[1, 4] = 1  # token 4 is predicted from position 2
    got = mtp_loss(model, ids, hidden, target_mask=keep)
    torch.testing.assert_close(got, -scores[1, 2, ids[1, 4]])


def test_packed_loss_is_the_loss_of_the_parts(model: R1Model) -> None:
    ids, parts = token_ids(1, 9), (4, 5)
    documents = torch.tensor([[0] * 4 + [1] * 5])
    hidden = model(ids, document_ids=documents).hidden
    got = mtp_loss(model, ids, hidden, document_ids=documents)
    alone = [mtp_loss(model, p, model(p).hidden) for p in ids.split(parts, 1)]
    want = (2 * alone[0] + 3 * alone[1]) / 5  # 2 and 3 targets
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_left_padding_changes_nothing(model: R1Model) -> None:
    ids = token_ids(1, 6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.int64), ids), 1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    hidden = model(padded, attention_mask=mask).hidden
    got = model.mtp_logits(padded, hidden, attention_mask=mask)[:, 3:]
    want = model.mtp_logits(ids, model(ids).hidden)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_no_target(model: R1Model, left: bool) -> None:
    ids, padding = token_ids(1, 6), torch.zeros(1, 3, dtype=torch.int64)
    ones = torch.ones(1, 6, dtype=torch.int64)
    order = slice(None, None, 1 if left else -1)
    padded = torch.cat((padding, ids)[order], 1)
    mask = torch.cat((padding, ones)[order], 1)
    hidden = model(padded, attention_mask=mask).hidden
    got = mtp_loss(model, padded, hidden, attention_mask=mask)
    want = mtp_loss(model, ids, model(ids).hidden)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_the_gradient_reaches_module_trunk_embedding_and_head(model: R1Model) -> None:
    ids = token_ids(2, 7)
    mtp_loss(model, ids, model(ids).hidden).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_nothing_to_predict_costs_nothing(model: R1Model) -> None:
    ids = token_ids(1, 6)
    hidden = model(ids).hidden
    loss = mtp_loss(model, ids, hidden, target_mask=torch.zeros(1, 6))
    loss.backward()
    assert loss.item() == 0.0


def test_what_cannot_be_predicted_is_refused(model: R1Model) -> None:
    ids = token_ids(1, 2)
    with pytest.raises(R1Error, match="at least 3"):
        mtp_loss(model, ids, model(ids).hidden)
    without = tiny_model()
    ids = token_ids(1, 5)
    with pytest.raises(R1Error, match="no MTP module"):
        without.mtp_logits(ids, without(ids).hidden)
