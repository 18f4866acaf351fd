"""The sampler against transformers, against no cache, and against itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

from r1lite import generation as module
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.generation import Sampling, choose, filter_logits, generate, sample
from r1lite.hub import save_pretrained
from r1lite.model import R1Model

PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 2, 30, 12], [6, 6]]


@pytest.fixture(scope="module")
def model() -> R1Model:
    torch.manual_seed(3)
    config = R1Config.preset("nano").with_(
        vocab_size=48,
        hidden_size=32,
        num_hidden_layers=2,
        num_nextn_predict_layers=0,
        initializer_range=0.3,
        max_position_embeddings=64,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 32,
        },
    )
    return R1Model(config).eval()


def uncached_greedy(model: R1Model, prompt: list[int], n: int, stop: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]


def test_greedy_with_cache_equals_greedy_without(model: R1Model) -> None:
    got = generate(model, PROMPTS, max_new_tokens=12, stop_ids=[1])
    assert got == [uncached_greedy(model, p, 12, 1) for p in PROMPTS]


def test_greedy_equals_transformers(model: R1Model, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32
    ).eval()
    ids, mask = module.left_pad(PROMPTS, pad_id=2)
    made = theirs.generate(
        ids,
        attention_mask=mask.long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )
    assert generate(model, PROMPTS, 12, stop_ids=[]) == made[:, ids.size(1) :].tolist()


def test_rows_stop_early_and_alone(model: R1Model) -> None:
    free = generate(model, PROMPTS, 12, stop_ids=[])
    stop = free[0][3]  # ends the first row after at most four tokens
    stopped = generate(model, PROMPTS, 12, stop_ids=[stop])
    for long, short in zip(free, stopped, strict=True):
        end = long.index(stop) + 1 if stop in long else 12
        assert short == long[:end]
    assert len(stopped[0]) <= 4


def test_sampling_does_not_depend_on_rows_that_leave(model: R1Model) -> None:
    how = Sampling(16, temperature=1.0, seed=5)
    free = sample(model, PROMPTS, how, n=8)
    stop = free.tokens[0][1]
    stopped = sample(model, PROMPTS, Sampling(16, stop_ids=(stop,), seed=5), n=8)
    for long, short in zip(free.tokens, stopped.tokens, strict=True):
        end = long.index(stop) + 1 if stop in long else 16
        assert short == long[:end]
    assert [s[-1] == stop for s in stopped.tokens] == stopped.stopped


def test_seeds_repeat_and_differ(model: R1Model) -> None:
    def one(seed: int) -> list[list[int]]:
        return generate(model, PROMPTS, 8, temperature=1.0, seed=seed)

    assert one(1) == one(1)
    assert one(1) != one(2)


def test_logprobs_are_the_models(model: R1Model) -> None:
    made = sample(model, PROMPTS, Sampling(6, temperature=0.7, seed=1), n=2)
    for i, (tokens, logps) in enumerate(zip(made.tokens, made.logprobs, strict=True)):
        prompt = PROMPTS[i // 2]
        logits = model(torch.tensor([prompt + tokens])).logits[0] / 0.7
        want = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        want = want.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logps), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(top_k=3),
        Sampling(top_p=0.6),
        Sampling(min_p=0.3),
        Sampling(top_k=9, top_p=0.8, min_p=0.05),
    ],
)
def test_filters_equal_transformers(how: Sampling) -> None:
    logits = torch.randn(64, 20, generator=torch.Generator().manual_seed(0)) * 2
    steps = transformers.LogitsProcessorList()
    if how.top_k:
        steps.append(transformers.TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(transformers.TopPLogitsWarper(how.top_p))
    if how.min_p:
        steps.append(transformers.MinPLogitsWarper(how.min_p))
    want = steps(torch.zeros(64, 1, dtype=torch.long), logits)
    assert torch.equal(filter_logits(logits, how), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_writes_in_half_precision(
    model: R1Model, dtype: torch.dtype, temperature: float
) -> None:
    made = sample(copy.deepcopy(model).to(dtype), PROMPTS, Sampling(3, temperature))
    assert [len(t) for t in made.tokens] == [3] * 4
    assert all(p <= 0 for row in made.logprobs for p in row)


def test_choose_follows_the_distribution() -> None:
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform = (torch.arange(1000) + 0.5) / 1000
    token, logp = choose(p.log().expand(1000, 4), Sampling(), uniform)
    assert torch.bincount(token, minlength=4).tolist() == [100, 0, 600, 300]
    torch.testing.assert_close(logp, p.log()[token])


@pytest.mark.parametrize(
    "how", [Sampling(temperature=1e-39), Sampling(top_p=1e-50)], ids=["cold", "narrow"]
)
def test_the_smallest_settings_take_the_best_token(how: Sampling) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    token, logp = choose(logits, how, torch.tensor([0.5]))
    assert token.item() == 1 and logp.isfinite()


def test_choose_never_takes_a_token_that_was_cut() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, -1.0]]).expand(3, 4)
    edge = torch.tensor([0.0, 0.5, 1 - 2**-24])
    token, _ = choose(logits, Sampling(top_k=2), edge)
    assert set(token.tolist()) <= {0, 2}


@pytest.mark.parametrize(
    ("prompts", "new", "word"),
    [
        ([], 4, "empty"),
        ([[]], 4, "empty"),
        ([[1] * 60], 5, "context of 64"),
        ([[48]], 4, "vocabulary"),
        ([[3, -1]], 4, "vocabulary"),
    ],
)
def test_bad_prompts_are_refused(
    model: R1Model, prompts: list[list[int]], new: int, word: str
) -> None:
    with pytest.raises(R1Error, match=word):
        generate(model, prompts, new)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
    ],
)
def test_bad_settings_name_the_field(values: dict[str, float]) -> None:
    with pytest.raises(R1Error, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]
