"""The engine with real models: company changes nothing, and nothing is made up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_model
from support.serving import QUESTION, drafting_model, model, tokenizer

from r1lite.data import chat
from r1lite.errors import R1Error
from r1lite.generation import generate
from r1lite.model import R1Model
from r1lite.quantization import quantize_
from r1lite.serving.api.metrics import Metrics
from r1lite.serving.asynchronous import AsyncEngine, EngineFailed
from r1lite.serving.clock import SimulatedClock
from r1lite.serving.engine import Engine
from r1lite.serving.types import (
    Delta,
    EngineConfig,
    PromptTooLong,
    QueueFull,
    SamplingParams,
    Stats,
    Usage,
)

T = tokenizer()
PROMPT = chat.prompt(T, QUESTION)
TIMES = ("queue", "prefill", "decode")
ROOMY = {"num_pages": 64, "page_size": 8, "max_running": 8, "max_batch_tokens": 64}


@cache
def tiny() -> R1Model:
    """Two layers whose every number matters, with an untrained MTP block."""
    torch.manual_seed(0)
    return tiny_model(num_nextn_predict_layers=1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def drain(engine: Engine) -> dict[str, list[Delta]]:
    """Step to the end; deltas by request."""
    made: dict[str, list[Delta]] = {}
    while engine.has_work:
        for name, delta in engine.step():
            made.setdefault(name, []).append(delta)
    return made


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    """The tokens of one sample."""
    return [t for d in deltas if d.index == index for t in d.token_ids]


def text(deltas: list[Delta]) -> str:
    """The text of a request with one sample."""
    return "".join(d.text for d in deltas)


def served(
    m: R1Model, prompt: list[int], params: SamplingParams, **config: Any
) -> list[Delta]:
    """One request alone."""
    with_text = T if m.config.vocab_size == T.vocab_size else None
    engine = Engine(m, with_text, EngineConfig(**{**ROOMY, **config}))
    return drain_one(engine, prompt, params)


def drain_one(engine: Engine, prompt: list[int], params: SamplingParams) -> list[Delta]:
    """Add one request and finish everything."""
    name = engine.add_request(prompt, params)
    return drain(engine)[name]


IDS = st.integers(2, 60)
PROMPTS = st.builds(
    lambda start, rest: [7] * start + rest,
    st.sampled_from([0, 0, 17]),  # a beginning that many have
    st.lists(IDS, min_size=1, max_size=20),
)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.8, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 5),
    n=st.sampled_from([1, 1, 2]),
    priority=st.integers(-1, 1),
    logprobs=st.sampled_from([None, 1]),
    ignore_eos=st.booleans(),
)


@settings(max_examples=12)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 12), PROMPTS, PARAMS), min_size=4, max_size=9
    ),
    leaving=st.sets(st.integers(0, 8), max_size=2),
    pages=st.sampled_from([7, 40]),
    budget=st.sampled_from([9, 64]),
    drafting=st.booleans(),
)
def test_batched_is_alone_token_for_token(
    asked: list[tuple[int, list[int], SamplingParams]],
    leaving: set[int],
    pages: int,
    budget: int,
    drafting: bool,
) -> None:
    """Random arrival, cancellation, chunks, preemption, drafts: the same tokens."""
    config = EngineConfig(
        num_pages=pages,
        page_size=8,
        max_batch_tokens=budget,
        max_running=5,
        speculate=drafting,
    )
    engine = Engine(tiny(), None, config)
    made: dict[str, list[Delta]] = {}
    for step in range(200):
        for i, (at, prompt, params) in enumerate(asked):
            if at == step:
                engine.add_request(prompt, params, str(i))
            if at + 5 == step and i in leaving:
                engine.abort(str(i))
        for name, delta in engine.step():
            made.setdefault(name, []).append(delta)
    assert not engine.has_work and not engine.pool.used
    for i, (_, prompt, params) in enumerate(asked):
        got = made.get(str(i), [])
        want = served(tiny(), prompt, params, prefix_cache=False)
        for j in range(params.n):
            mine, full = tokens(got, j), tokens(want, j)
            assert mine == full or (i in leaving and mine == full[: len(mine)])


def test_preemption_happens_and_changes_nothing() -> None:
    config = EngineConfig(num_pages=5, page_size=8, max_running=4, max_batch_tokens=64)
    engine = Engine(tiny(), None, config)
    how = SamplingParams(20, temperature=1.0, seed=3, ignore_eos=True)
    prompts = [[5, 6, 7 + i] * 3 for i in range(4)]
    names = [engine.add_request(p, how) for p in prompts]
    made = drain(engine)
    assert engine.stats().preemptions > 0
    for name, prompt in zip(names, prompts, strict=True):
        assert tokens(made[name]) == tokens(served(tiny(), prompt, how))


def test_greedy_tokens_are_those_of_generate() -> None:
    prompts = [[3, 4, 5], [9] * 30, [2], [50, 40, 30, 20, 10]]
    how = SamplingParams(16, temperature=0, ignore_eos=True)
    engine = Engine(tiny(), None, EngineConfig(**ROOMY))
    names = [engine.add_request(p, how) for p in prompts]
    made = drain(engine)
    for name, prompt in zip(names, prompts, strict=True):
        assert tokens(made[name]) == generate(tiny(), [prompt], 16, stop_ids=[])[0]


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("budget", [8, 13, 256])
def test_chunks_and_pages_of_any_size_give_the_same(
    page_size: int, budget: int
) -> None:
    prompt, how = list(range(2, 45)), SamplingParams(10, seed=1, logprobs=2)
    want = served(tiny(), prompt, how)
    engine = Engine(
        tiny(),
        None,
        EngineConfig(
            num_pages=128, page_size=page_size, max_batch_tokens=budget, max_running=8
        ),
    )
    got = drain_one(engine, prompt, how)
    assert tokens(got) == tokens(want)
    scores = [[s.logprob for d in x for s in d.logprobs] for x in (got, want)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    chunks = [e.tokens for e in engine.events if e.kind == "prefill"]
    assert sum(chunks) == 43 and len(chunks) == -(-43 // budget)


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    engine = Engine(
        tiny(), None, EngineConfig(num_pages=64, max_batch_tokens=8, max_running=4)
    )
    how = SamplingParams(12, temperature=0, ignore_eos=True)
    first = engine.add_request([4, 5], how)
    engine.step()
    engine.add_request([6] * 40, how)
    for _ in range(4):
        assert [name for name, _ in engine.step()] == [first]
    assert engine.stats().running == 2


def test_logprobs_are_the_models() -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    for temperature in (0.0, 0.7):
        how = SamplingParams(
            8, temperature=temperature, seed=2, logprobs=3, top_k=4, ignore_eos=True
        )
        made = served(tiny(), prompt, how)
        ids = torch.tensor([prompt + tokens(made)])
        with torch.inference_mode():
            logits = tiny()(ids).logits[0, len(prompt) - 1 : -1]
        want = (logits / (temperature or 1.0)).log_softmax(-1)
        scores = [s for d in made for s in d.logprobs]
        assert [s.token_id for s in scores] == tokens(made)
        for score, row in zip(scores, want, strict=True):
            assert score.logprob == pytest.approx(float(row[score.token_id]), abs=1e-4)
            best = row.topk(3)
            assert [t for t, _ in score.top] == best.indices.tolist()
            assert [p for _, p in score.top] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )


def test_samples_share_the_prompts_pages_and_part_where_they_write() -> None:
    prompt, how = list(range(2, 37)), SamplingParams(6, seed=4, n=4, ignore_eos=True)
    config = EngineConfig(**ROOMY)
    engine = Engine(tiny(), None, config)
    name = engine.add_request(prompt, how)
    made = engine.step()
    assert engine.pool.used == 5  # 35 tokens on pages of 8, once for all four
    assert sorted(d.index for _, d in made) == [0, 1, 2, 3]
    made += engine.step()
    assert engine.pool.used == 4 + 4  # each has its own last page
    while engine.has_work:
        made += engine.step()
    deltas = [d for _, d in made]
    texts = [tokens(deltas, j) for j in range(4)]
    assert len(set(map(tuple, texts))) > 1 and all(len(t) == 6 for t in texts)
    assert texts[0] == tokens(
        served(tiny(), prompt, SamplingParams(6, seed=4, ignore_eos=True))
    )
    usage = [d.usage for d in deltas if d.usage]
    assert [(u.prompt_tokens, u.completion_tokens) for u in usage] == [(35, 24)]
    assert engine.stats().prompt_tokens == 35 and not engine.pool.used
    assert name == "request-0"


def test_a_known_prefix_is_not_computed_again() -> None:
    engine = Engine(tiny(), None, EngineConfig(**ROOMY))
    how = SamplingParams(5, temperature=0, ignore_eos=True)
    first = drain_one(engine, [8] * 20 + [3], how)
    again = drain_one(engine, [8] * 20 + [4, 5], how)
    assert first[-1].usage and first[-1].usage.cached_tokens == 0
    assert again[-1].usage and again[-1].usage.cached_tokens == 16
    want = served(tiny(), [8] * 20 + [4, 5], how, prefix_cache=False)
    assert tokens(again) == tokens(want)
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (21 + 22, 16)
    assert stats.pages_used == 0 and stats.pages_cached == 4


def test_an_answer_is_a_prefix_too() -> None:
    """The next turn of a chat finds what the last one computed."""
    engine = Engine(tiny(), None, EngineConfig(**ROOMY))
    how = SamplingParams(12, temperature=0, ignore_eos=True)
    prompt = [9, 8, 7, 6]
    answer = tokens(drain_one(engine, prompt, how))
    more = drain_one(engine, [*prompt, *answer, 5, 5, 5], how)
    assert more[-1].usage and more[-1].usage.cached_tokens == 8
    want = served(tiny(), [*prompt, *answer, 5, 5, 5], how, prefix_cache=False)
    assert tokens(more) == tokens(want)


def test_equal_keys_do_not_serve_anothers_pages() -> None:
    engine = Engine(tiny(), None, EngineConfig(**ROOMY))
    engine.pool.hash_fn = lambda parent, block: 1
    how = SamplingParams(6, temperature=0, ignore_eos=True)
    drain_one(engine, [8] * 20, how)
    other = [*range(2, 22)]
    got = drain_one(engine, other, how)
    assert got[-1].usage and got[-1].usage.cached_tokens == 0
    assert tokens(got) == tokens(served(tiny(), other, how, prefix_cache=False))
    same = drain_one(engine, [8] * 20, how)
    assert same[-1].usage and same[-1].usage.cached_tokens == 8  # one key, one page


def test_the_time_in_the_queue_is_that_of_those_in_front() -> None:
    clock = SimulatedClock(lambda tokens: 1.0)  # a step takes a second
    config = EngineConfig(num_pages=64, max_running=1)
    engine = Engine(tiny(), config=config, clock=clock)
    how = SamplingParams(4, temperature=0, ignore_eos=True)
    first, second = (engine.add_request([7] * 3, how) for _ in range(2))
    usages = {name: deltas[-1].usage for name, deltas in drain(engine).items()}
    assert (one := usages[first]) and one.queue_seconds == 0.0
    assert (two := usages[second]) and two.queue_seconds == 4.0


def test_drafts_are_right_often_and_change_no_token() -> None:
    m = drafting_model(80, 32)
    plain, guessing = (
        Engine(m, T, EngineConfig(num_pages=64, speculate=on)) for on in (False, True)
    )
    for params in (
        SamplingParams(40, temperature=0, ignore_eos=True),
        SamplingParams(40, temperature=1.0, seed=1, ignore_eos=True, logprobs=0),
        SamplingParams(40, temperature=0, stop=("=",), n=2),
    ):
        one, two = (drain_one(e, PROMPT, params) for e in (plain, guessing))
        for j in range(params.n):
            assert tokens(one, j) == tokens(two, j)
            mine = ["".join(d.text for d in x if d.index == j) for x in (one, two)]
            assert mine[0] == mine[1]
        assert one[-1].usage == two[-1].usage
    stats = guessing.stats()
    assert stats.drafted > 30 and stats.acceptance > 0.3
    assert plain.stats().drafted == 0
    saved = plain.stats().steps - stats.steps
    assert 0 < saved <= stats.accepted
    told = Metrics("nano", guessing.stats).text().decode()
    for name, count in (("draft", stats.drafted), ("accepted", stats.accepted)):
        metric = f'vllm:spec_decode_num_{name}_tokens_total{{model_name="nano"}}'
        assert f"{metric} {float(count)}\n" in told


def test_a_guess_takes_no_ones_token() -> None:
    """The budget has a token for everybody and guesses take only what is over."""
    m = drafting_model(80, 32)
    config = EngineConfig(
        num_pages=64, max_batch_tokens=4, max_running=4, speculate=True
    )
    engine = Engine(m, None, config)
    how = SamplingParams(30, temperature=0, ignore_eos=True)
    names = {engine.add_request(PROMPT[:1], how) for _ in range(4)}
    engine.step()
    for _ in range(10):
        assert {name for name, _ in engine.step()} == names
    assert engine.stats().drafted == 0


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantised_model_is_served_as_it_is(scheme: str) -> None:
    m = R1Model(model().config)
    m.load_state_dict(model().state_dict())
    quantize_(m.eval(), scheme)
    how = SamplingParams(12, temperature=0, ignore_eos=True)
    engine = Engine(m, T, EngineConfig(num_pages=64))
    prompts = [PROMPT, PROMPT[:9], PROMPT[:20]]
    names = [engine.add_request(p, how) for p in prompts]
    made = drain(engine)
    for name, prompt in zip(names, prompts, strict=True):
        assert tokens(made[name]) == generate(m, [prompt], 12, stop_ids=[])[0]


def test_stop_strings_are_found_across_tokens_and_never_shown() -> None:
    whole = served(model(), PROMPT, SamplingParams(60, temperature=0))
    said = text(whole)
    pieces = [d.text for d in whole]
    assert len(said) > 20
    for start in range(3, len(said) - 4, 5):
        stop = said[start : start + 4]
        got = served(model(), PROMPT, SamplingParams(60, temperature=0, stop=(stop,)))
        assert text(got) == said[: said.index(stop)]
        assert got[-1].finish_reason == "stop"
        assert tokens(got) == tokens(whole)[: len(tokens(got))]
        assert stop not in text(got)
    assert any(len(p) < 4 for p in pieces)  # so some stops did cross a border


def test_reasons_to_end() -> None:
    def last(**fields: Any) -> tuple[str | None, int]:
        made = served(model(), PROMPT, SamplingParams(temperature=0, **fields))
        return made[-1].finish_reason, len(tokens(made))

    reason, count = last(max_tokens=200)
    assert reason == "stop"
    assert last(max_tokens=count) == ("stop", count)
    assert last(max_tokens=count - 1) == ("length", count - 1)
    assert last(max_tokens=count + 2, ignore_eos=True) == ("length", count + 2)
    some = tokens(served(model(), PROMPT, SamplingParams(9, temperature=0)))[4]
    assert last(max_tokens=200, stop_token_ids=(some,))[0] == "stop"


def test_a_seed_repeats_and_none_does_not() -> None:
    how = SamplingParams(20, temperature=1.2, ignore_eos=True)
    free = [tokens(served(tiny(), [4, 4], how)) for _ in range(2)]
    assert free[0] != free[1]
    seeded = SamplingParams(20, temperature=1.2, ignore_eos=True, seed=-7)
    pair = [tokens(served(tiny(), [4, 4], seeded)) for _ in range(2)]
    assert pair[0] == pair[1]


def test_urgent_requests_go_first() -> None:
    engine = Engine(
        tiny(), None, EngineConfig(num_pages=64, max_running=1, max_batch_tokens=8)
    )
    for priority in (5, 0, -5):
        how = SamplingParams(2, temperature=0, priority=priority, ignore_eos=True)
        engine.add_request([3], how, str(priority))
    ended = [n for _ in range(6) for n, d in engine.step() if d.usage]
    assert ended == ["-5", "0", "5"]


def test_refusals_say_what_to_do() -> None:
    engine = Engine(
        tiny(),
        None,
        EngineConfig(num_pages=4, page_size=8, max_running=4, max_waiting=2),
    )
    bad: list[tuple[list[int], dict[str, Any], type[R1Error], str]] = [
        ([], {}, R1Error, "prompt: is empty"),
        ([61], {}, R1Error, "outside the vocabulary"),
        ([-1], {}, R1Error, "outside the vocabulary"),
        ([2] * 30, {"max_tokens": 3}, PromptTooLong, "room for 32"),
        ([2], {"n": 5}, R1Error, "n: 5 samples"),
        ([2], {"stop": ("x",)}, R1Error, "no tokenizer"),
    ]
    for prompt, fields, kind, says in bad:
        with pytest.raises(kind, match=says):
            engine.add_request(prompt, SamplingParams(**{"max_tokens": 2, **fields}))
    assert not engine.has_work
    engine.add_request([2], SamplingParams(2), "a")
    with pytest.raises(R1Error, match="'a' is in use"):
        engine.add_request([2], SamplingParams(2), "a")
    engine.add_request([2], SamplingParams(2))
    with pytest.raises(QueueFull, match="2 requests wait"):
        engine.add_request([2], SamplingParams(2))
    engine.step()
    engine.add_request([2], SamplingParams(2))  # the others run now
    plain = tiny_model()
    with pytest.raises(R1Error, match="speculate: this model has no MTP"):
        Engine(plain, None, EngineConfig(speculate=True))
    with pytest.raises(R1Error, match="hold not one page"):
        Engine(plain, None, EngineConfig(memory_bytes=1))
    with pytest.raises(R1Error, match="max_batch_tokens"):
        EngineConfig(max_batch_tokens=3, max_running=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", 2),
        ("n", 0),
        ("seed", 2**63),
        ("priority", 1001),
        ("logprobs", 21),
        ("stop", ("",)),
    ],
)
def test_parameters_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(R1Error, match=f"{name}: out of range"):
        SamplingParams(**{name: value})


def test_abort_frees_pages_at_once_and_tells_every_sample() -> None:
    engine = Engine(tiny(), None, EngineConfig(**ROOMY))
    how = SamplingParams(20, seed=1, n=3, ignore_eos=True)
    name = engine.add_request([5] * 12, how)
    other = engine.add_request([6] * 12, how)
    engine.step()
    held = engine.pool.used
    ended = engine.abort(name)
    assert engine.pool.used < held
    assert sorted(d.index for _, d in ended) == [0, 1, 2]
    assert all(d.finish_reason == "abort" for _, d in ended)
    assert [d.usage is not None for _, d in ended] == [False, False, True]
    assert engine.abort(name) == [] == engine.abort("unknown")
    kinds = [(e.index, e.kind) for e in engine.events if e.request_id == name]
    assert {(0, "aborted"), (1, "aborted"), (2, "aborted")} <= set(kinds)
    made = drain(engine)
    assert set(made) == {other} and not engine.pool.used
    assert engine.stats().finished == {"stop": 0, "length": 3, "abort": 3}


def test_events_tell_a_requests_life() -> None:
    engine = Engine(
        tiny(), None, EngineConfig(num_pages=64, max_batch_tokens=8, max_running=2)
    )
    how = SamplingParams(3, temperature=0, ignore_eos=True)
    drain_one(engine, [4] * 12, how)
    events = list(engine.events)
    assert [(e.kind, e.tokens) for e in events] == [
        ("queued", 12),
        ("scheduled", 0),
        ("prefill", 8),
        ("prefill", 4),
        ("token", 1),
        ("token", 1),
        ("token", 1),
        ("finished", 0),
    ]
    assert [e.step for e in events] == [0, 1, 1, 2, 2, 3, 4, 4]
    times = [e.time for e in events]
    assert times == sorted(times)
    assert (
        Engine(tiny(), None, EngineConfig(**ROOMY, max_events=0)).stats().events == ()
    )


def test_the_thread_serves_a_loop_and_ends() -> None:
    async def work() -> tuple[list[list[int]], bool]:
        engine = AsyncEngine(tiny(), None, EngineConfig(**ROOMY))
        with pytest.raises(EngineFailed, match="does not run"):
            engine.generate([3], SamplingParams(2))
        engine.start()
        how = SamplingParams(10, seed=5, ignore_eos=True)
        streams = [engine.generate([3 + i], how) for i in range(6)]
        await streams[5].aclose()

        async def read(stream: Any) -> list[int]:
            return [t async for d in stream for t in d.token_ids]

        got = await asyncio.gather(*map(read, streams[:5]))
        drained = await engine.drain(5)
        with pytest.raises(QueueFull, match="going down"):
            engine.generate([3], how)
        await engine.stop()
        assert not engine.healthy and not engine.stats().pages_used
        return got, drained

    got, drained = asyncio.run(work())
    how = SamplingParams(10, seed=5, ignore_eos=True)
    assert got == [tokens(served(tiny(), [3 + i], how)) for i in range(5)]
    assert drained


def test_a_name_is_free_again_when_its_request_has_ended() -> None:
    """A step under way may still say something of the one that left."""

    async def work() -> tuple[list[int], list[str | None]]:
        engine = AsyncEngine(tiny(), None, EngineConfig(**ROOMY))
        engine.start()
        how = SamplingParams(10, seed=5, ignore_eos=True)
        first = engine.generate([3], replace(how, max_tokens=50), "x")
        await anext(first)
        await first.aclose()
        with pytest.raises(R1Error, match="in use"):
            engine.generate([4], how, "x")
        async with asyncio.timeout(10):
            while True:
                with suppress(R1Error):
                    second = engine.generate([4], how, "x")
                    break
                await asyncio.sleep(0.001)
        deltas = [d async for d in second]
        await engine.stop()
        return tokens(deltas), [d.finish_reason for d in deltas[-1:]]

    got, ends = asyncio.run(work())
    how = SamplingParams(10, seed=5, ignore_eos=True)
    assert got == tokens(served(tiny(), [4], how)) and ends == ["length"]


def test_stopping_answers_those_who_have_just_come() -> None:
    async def work() -> list[str | None]:
        engine = AsyncEngine(tiny(), None, EngineConfig(**ROOMY))
        engine.start()
        how = SamplingParams(40, ignore_eos=True)
        busy = engine.generate([3] * 20, how)
        await anext(busy)
        late = [engine.generate([5 + i], how) for i in range(3)]  # in the inbox
        await engine.stop()
        async with asyncio.timeout(5):
            return [[d async for d in s][-1].finish_reason for s in late]

    assert asyncio.run(work()) == ["abort"] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_drain_during_which_the_engine_fails_is_not_clean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> bool:
        engine = AsyncEngine(tiny(), None, EngineConfig(**ROOMY))
        engine.start()
        stream = engine.generate([3], SamplingParams(40, ignore_eos=True))
        await anext(stream)
        monkeypatch.setattr(engine.engine.runner, "run", lambda _: 1 / 0)
        with pytest.raises(EngineFailed):
            async for _ in stream:
                pass
        assert engine.failed
        clean = await engine.drain(5)
        await engine.stop()
        return clean

    assert not asyncio.run(work())


def test_the_parts_of_a_request_are_no_longer_than_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    metrics = Metrics("nano", Stats)

    def read(name: str) -> float:
        found = metrics.registry.get_sample_value(name, {"model_name": "nano"})
        assert found is not None
        return found

    left, two = metrics.measure(3), metrics.measure(6)
    now[0] = 0.2
    left.saw(Delta(0, (7,)))
    left.done()  # it went away: nobody knows how long it had waited
    assert read("vllm:request_queue_time_seconds_count") == 0
    for at, index, waited in ((0.3, 0, 0.1), (0.9, 1, 0.6)):
        now[0] = at
        two.saw(Delta(index, (7, 8), "", (), "length", Usage(3, 2, 0, waited)))
    two.done()
    parts = [read(f"vllm:request_{p}_time_seconds_sum") for p in TIMES]
    assert parts == pytest.approx([0.1, 0.2, 0.6])
    assert read("vllm:request_generation_tokens_sum") == 5
    assert read("vllm:request_max_num_generation_tokens_sum") == 3
