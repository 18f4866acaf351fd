"""The reward model: where it reads, what it learns, and what its judges say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.config import R1Config
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.model import R1Model
from r1lite.training.compute import ComputeConfig
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog
from r1lite.training.preferences import Comparisons, Pair
from r1lite.training.reward_checks import (
    length_bias,
    pair_accuracy,
    reliability,
    share,
)
from r1lite.training.reward_model import (
    RewardModelConfig,
    ScoreModel,
    bradley_terry_loss,
    pad_right,
    pair_rewards,
    score_pairs,
    train_reward_model,
)

SHARES = {"chain/3": 1.0}


def opinionated(model: R1Model) -> ScoreModel:
    """A score model whose head is not 0."""
    both = ScoreModel.of(model).eval()
    g = torch.Generator().manual_seed(0)
    both.score.weight.data = 0.1 * torch.randn(both.score.weight.shape, generator=g)
    return both


def test_it_starts_as_the_model_without_an_opinion(model: R1Model) -> None:
    before = torch.get_rng_state()
    both = ScoreModel.of(model)
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.randint(9, 200, (2, 7))
    torch.testing.assert_close(both(ids).logits, model(ids).logits)
    assert both.scores(ids).abs().max() == 0
    both.embed_tokens.weight.data += 1  # a copy: the model does not move
    assert not torch.equal(both.embed_tokens.weight, model.embed_tokens.weight)
    assert both.trunk_state().keys() == model.state_dict().keys()


def test_token_0_gives_every_answer_the_same_score(model: R1Model) -> None:
    both = opinionated(model)
    ids = torch.randint(9, 200, (16, 12))
    ids[:, 0] = 0  # begin of sentence, as every prompt starts
    scores = both.scores(ids).detach()
    assert float(scores[:, 0].max() - scores[:, 0].min()) < 1e-6
    assert float(scores[:, -1].max() - scores[:, -1].min()) > 0.05


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=6), st.integers(0, 6))
def test_padding_changes_no_reward(lengths: list[int], more: int) -> None:
    both = opinionated(_tiny())
    g = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(9, 200, (n,), generator=g).tolist() for n in lengths]
    ids, size = pad_right(rows, 2)
    wide = torch.cat([ids, torch.full((len(rows), more), 77)], 1)
    found = both.rewards(wide, size)
    alone = [both.rewards(torch.tensor([r]), torch.tensor([len(r)])) for r in rows]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


def _tiny() -> R1Model:
    torch.manual_seed(0)
    return R1Model(
        R1Config.preset("nano").with_(
            vocab_size=200,
            hidden_size=32,
            num_hidden_layers=2,
            num_nextn_predict_layers=0,
            n_routed_experts=4,
            max_position_embeddings=64,
        )
    )


def test_gradient_of_the_head_is_that_of_the_definition(
    model: R1Model, tokenizer: R1Tokenizer
) -> None:
    """d loss / d w = mean of (p - 1) (h_chosen - h_rejected), in float64."""
    both = opinionated(model)
    pairs = [Comparisons(tokenizer, SHARES, 0).at(i) for i in range(6)]
    good, bad = pair_rewards(both, pairs, tokenizer.pad_id).unbind(-1)
    (found,) = torch.autograd.grad(bradley_terry_loss(good, bad), both.score.weight)
    want = torch.zeros(32, dtype=torch.float64)
    w = both.score.weight.detach().double()[0]
    for pair in pairs:
        a, b = (
            both.hidden(torch.tensor([pair.prompt + r]))[0, -1].detach().double()
            for r in (pair.chosen, pair.rejected)
        )
        p = 1 / (1 + math.exp(-float(w @ (a - b))))
        want += (p - 1) * (a - b) / len(pairs)
    torch.testing.assert_close(found[0].double(), want, atol=1e-6, rtol=1e-4)


def one_update(
    model: R1Model, tokenizer: R1Tokenizer, folder: Path, micro_rows: int
) -> dict[str, Tensor]:
    """The gradients of one step on 7 pairs."""
    both = opinionated(model)
    folder.mkdir()
    log = MetricsLog(folder, tensorboard=False)
    run = Run(
        folder, 0, log, progress=False, compute=ComputeConfig(micro_rows=micro_rows)
    )
    kept: dict[str, Tensor] = {}
    finish = run.team.finish_backward_

    def keep(module: torch.nn.Module, clip: float) -> float:
        kept.update(
            {
                k: p.grad.clone()
                for k, p in module.named_parameters()
                if p.grad is not None
            }
        )
        return finish(module, clip)  # type: ignore[arg-type]

    run.team.finish_backward_ = keep  # type: ignore[method-assign, assignment]
    pair_at = Comparisons(tokenizer, SHARES, 0).at
    train_reward_model(run, both, RewardModelConfig(steps=1, pairs=7), pair_at)
    return kept


@pytest.mark.parametrize("micro_rows", [1, 2, 5])
def test_any_split_gives_the_same_update(
    model: R1Model, tokenizer: R1Tokenizer, tmp_path: Path, micro_rows: int
) -> None:
    whole = one_update(model, tokenizer, tmp_path / "a", 0)
    split = one_update(model, tokenizer, tmp_path / "b", micro_rows)
    assert whole.keys() == split.keys()
    assert "score.weight" in whole
    for name, grad in whole.items():
        assert float((grad - split[name]).abs().max()) < 1e-6, name


def test_it_learns_to_prefer_the_well_formed(
    model: R1Model, tokenizer: R1Tokenizer, run: Run
) -> None:
    both = ScoreModel.of(model)
    train = Comparisons(tokenizer, SHARES, 0, malformed=1.0)
    held = Comparisons(tokenizer, SHARES, 0, malformed=1.0, split="validation")
    pairs = [held.at(i) for i in range(60)]
    assert pair_accuracy(score_pairs(both, pairs)).value == 0  # ties are not right
    config = RewardModelConfig(steps=30, pairs=16)
    config = config.model_copy(
        update={"optim": config.optim.model_copy(update={"lr": 5e-3})}
    )
    result = train_reward_model(run, both, config, train.at)
    assert result.steps == 30
    assert run.log.rewind("reward", 30)[0]["loss"] == pytest.approx(math.log(2))
    assert pair_accuracy(score_pairs(both, pairs)).low > 0.55


def test_what_it_refuses(model: R1Model, tokenizer: R1Tokenizer, run: Run) -> None:
    both, at = ScoreModel.of(model), Comparisons(tokenizer, SHARES, 0).at
    with pytest.raises(R1Error, match=r"reward\.pairs"):
        train_reward_model(run, both, RewardModelConfig(pairs=0), at)
    crowd = replace(run, team=SimpleNamespace(ranks=9))  # type: ignore[arg-type]
    with pytest.raises(R1Error, match=r"reward\.pairs: 8 are too few for 9 ranks"):
        train_reward_model(crowd, both, RewardModelConfig(pairs=8), at)
    with pytest.raises(R1Error, match="pairs"):
        share(torch.zeros(0) > 0)


def test_interval_of_a_share_by_hand() -> None:
    found = share(torch.tensor([True] * 8 + [False] * 2))
    assert found.value == 0.8
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)
    sure = share(torch.ones(50) > 0)
    assert (sure.high, sure.low < 0.95) == (1.0, True)


def test_reliability_by_hand() -> None:
    """Four pairs 75 % sure, three of them right; one 95 % sure and wrong."""
    three = math.log(3)
    rewards = torch.tensor(
        [[three, 0], [three, 0], [1 + three, 1], [0, three], [0, math.log(19)]]
    )
    found = reliability(rewards, bins=2)
    assert found.count == [4, 1] or found.count == [5]
    found = reliability(rewards, bins=5)
    assert found.count == [4, 1]
    assert found.sure == pytest.approx([0.75, 0.95], abs=1e-5)
    assert found.right == [0.75, 0.0]
    assert found.error == pytest.approx(0.95 / 5, abs=1e-5)


def test_a_ruler_is_found_out() -> None:
    pairs = [
        Pair([0], [9] * a, [9] * b, "sampled") for a, b in ((9, 4), (8, 3), (5, 5))
    ]
    ruler = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs]).float()
    found = length_bias(ruler, pairs)
    assert found.correlation == pytest.approx(1)
    assert found.longer is not None
    assert found.longer.value == 1
    assert found.same_length is not None
    assert found.same_length.value == 0
    fair = length_bias(torch.tensor([[1.0, 0], [0, 1], [1, 0]]), pairs)
    assert fair.longer is not None
    assert fair.longer.value == 0.5
    assert length_bias(ruler[:2], pairs[:2]).same_length is None
