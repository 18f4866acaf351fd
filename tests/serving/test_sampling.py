"""A row's token: by its own settings and its own chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1lite.generation import Sampling, filter_logits
from r1lite.serving.sampling import Chooser, uniforms
from r1lite.serving.types import SamplingParams

CPU = torch.device("cpu")
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.2]),
)


def pick(
    rows: list[SamplingParams], logits: torch.Tensor, chance: list[float]
) -> list[int]:
    """The chosen tokens."""
    return Chooser(rows, CPU)(logits, torch.tensor(chance))[0].tolist()


@settings(max_examples=60)
@given(
    rows=st.lists(PARAMS, min_size=1, max_size=6),
    seed=st.integers(0, 99),
    chance=st.integers(0, 255).map(lambda i: i / 256),
)
def test_a_row_is_chosen_as_if_it_were_alone(
    rows: list[SamplingParams], seed: int, chance: float
) -> None:
    """Settings of neighbours change nothing, and filters are `generate`'s."""
    logits = torch.randn(len(rows), 23, generator=torch.Generator().manual_seed(seed))
    together = pick(rows, logits, [chance] * len(rows))
    for i, how in enumerate(rows):
        assert pick([how], logits[i : i + 1], [chance]) == [together[i]]
        if how.temperature == 0:
            assert together[i] == int(logits[i].argmax())
            continue
        logp = (logits[i : i + 1] / how.temperature).log_softmax(-1)
        options = Sampling(top_k=how.top_k, top_p=how.top_p, min_p=how.min_p)
        kept = filter_logits(logp, options).softmax(-1)[0]
        assert kept[together[i]] > 0
        # The token where the sum of chances passes the drawn number.
        before = float(kept[: together[i]].sum())
        assert before - 1e-5 <= chance <= before + float(kept[together[i]]) + 1e-5


@pytest.mark.parametrize(
    "how",
    [
        SamplingParams(temperature=1e-39, logprobs=1),
        SamplingParams(temperature=1e-46),
        SamplingParams(temperature=1.0, top_p=1e-46),
        SamplingParams(temperature=1e-9, top_p=1e-9, min_p=1.0),
    ],
)
def test_numbers_next_to_zero_mean_the_likeliest_token(how: SamplingParams) -> None:
    logits = torch.tensor([[0.5, 30.0, -200.0, 29.0]])
    tokens, logp = Chooser([how], CPU)(logits, torch.tensor([0.999]))
    assert tokens.tolist() == [1] and not logp.isnan().any()


def test_tokens_come_as_often_as_the_model_says() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    count = 20_000
    rows = [SamplingParams(temperature=0.8)] * count
    chance = uniforms([11] * count, [0] * count, list(range(count)))
    tokens, _ = Chooser(rows, CPU)(logits.expand(count, -1), chance)
    seen = torch.bincount(tokens, minlength=5) / count
    want = (logits[0] / 0.8).softmax(-1)
    assert float((seen - want).abs().max()) < 4 * math.sqrt(0.25 / count)


def test_logprobs_are_before_filters() -> None:
    logits = torch.randn(2, 9)
    rows = [SamplingParams(temperature=0.5, top_k=2), SamplingParams(temperature=0)]
    _, logp = Chooser(rows, CPU)(logits, torch.tensor([0.3, 0.3]))
    heat = torch.tensor([[0.5], [1.0]])
    assert torch.allclose(logp, (logits / heat).log_softmax(-1))


def test_a_chance_depends_on_seed_sample_and_place_and_nothing_else() -> None:
    seeds, samples, places = (
        [0, 0, 0, 1, -1, 2**62],
        [0, 0, 1, 0, 0, 3],
        [0, 1, 0, 0, 0, 7],
    )
    rows = uniforms(seeds, samples, places).tolist()
    assert len(set(rows)) == 6 and all(0 <= x < 1 for x in rows)
    for i, row in enumerate(rows):
        assert uniforms(seeds[i : i + 1], samples[i : i + 1], places[i : i + 1]) == row


@pytest.mark.parametrize("what", ["seed", "sample", "place"])
def test_chances_are_even_and_unrelated(what: str) -> None:
    count = 4096
    run, still = list(range(count)), [5] * count
    x = uniforms(
        *[run if what == name else still for name in ("seed", "sample", "place")]
    )
    seen = torch.bincount((x * 16).long(), minlength=16)
    # Chi-square with 15 degrees of freedom: 37.7 has a chance of one in a thousand.
    assert float(((seen - count / 16) ** 2 / (count / 16)).sum()) < 37.7
    following = torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]
    assert abs(float(following)) < 4 / math.sqrt(count)
    assert len(x.unique()) > 0.99 * count
