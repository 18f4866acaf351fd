"""The simple way, its price, and the clocks that both ways are compared by."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from support.serving import QUESTION, model, tokenizer

from r1lite.data import chat
from r1lite.errors import R1Error
from r1lite.serving.clock import Clock, SimulatedClock
from r1lite.serving.dynamic import DynamicBatcher
from r1lite.serving.engine import Engine
from r1lite.serving.replay import Answer, Arrival, replay
from r1lite.serving.types import EngineConfig, SamplingParams

T = tokenizer()
PROMPT = chat.prompt(T, QUESTION)


def price(tokens: int) -> float:
    """Seconds of a step."""
    return 0.02 + 0.0002 * tokens


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def batcher(size: int = 4, wait: float = 0.05) -> DynamicBatcher:
    """With simulated time."""
    return DynamicBatcher(model(), T, size, wait, SimulatedClock(price))


def engine(running: int = 4) -> Engine:
    """With simulated time."""
    config = EngineConfig(num_pages=128, max_running=running, prefix_cache=False)
    return Engine(model(), T, config, SimulatedClock(price))


def how(new: int, **fields: Any) -> SamplingParams:
    """So many tokens, no fewer."""
    return SamplingParams(new, **{"temperature": 0, "ignore_eos": True, **fields})


def arrivals() -> list[Arrival]:
    """Twelve requests, 30 ms apart, of 10 to 37 tokens, greedy and drawn."""
    return [
        Arrival(
            0.03 * i, PROMPT[: 9 + i], how(10 + i * 7 % 30, temperature=i % 2, seed=i)
        )
        for i in range(12)
    ]


def test_static_dynamic_and_continuous_give_the_same_tokens() -> None:
    ways = [batcher(), batcher(wait=math.inf), batcher(size=1), engine(), engine(2)]
    made = [[a.tokens for a in replay(w, arrivals())] for w in ways]
    assert all(m == made[0] for m in made)
    assert [len(t) for t in made[0]] == [a.params.max_tokens for a in arrivals()]


def test_a_simulated_replay_is_the_same_every_time() -> None:
    runs = [[a.times for a in replay(engine(), arrivals())] for _ in range(2)]
    assert runs[0] == runs[1]
    first = replay(engine(), [Arrival(0.5, PROMPT[:10], how(3))])[0]
    # A step for the prompt's ten tokens, then one for each token but the last.
    assert first.ttft == pytest.approx(0.022)
    assert first.latency == pytest.approx(0.022 + 2 * 0.0202)
    assert first.gaps == pytest.approx([0.0202] * 2)


def test_a_batch_waits_for_company_but_not_for_ever() -> None:
    server = batcher(size=3, wait=0.1)
    answers = replay(server, [Arrival(at, PROMPT[:10], how(2)) for at in (0, 0.04, 9)])
    # The first two run when the first has waited enough; no third came.
    assert answers[0].ttft == pytest.approx(0.1 + price(20) + price(2))
    assert answers[1].latency == pytest.approx(answers[0].latency - 0.04)
    # The last is closed in: nobody else comes, so it does not wait.
    assert answers[2].latency == pytest.approx(price(10) + price(1))


def test_a_full_batch_starts_at_once() -> None:
    server = batcher(size=2, wait=math.inf)
    for i in range(3):
        assert server.due == (math.inf if i < 2 else 0.0)
        server.add_request(PROMPT[:5], how(2), str(i))
    assert server.step() == []  # the prompts
    assert [name for name, _ in server.step()] == ["0", "1"]
    assert server.due == math.inf and server.step() == [] and server.has_work
    server.close()
    server.step()
    assert [name for name, _ in server.step()] == ["2"] and not server.has_work


def test_nobody_joins_and_nobody_leaves_a_batch_that_runs() -> None:
    """The price: idle rows, padding, and first tokens that come with the last."""
    coming = [Arrival(0, PROMPT[:18], how(2)), Arrival(0, PROMPT[:5], how(30)),
              Arrival(0.01, PROMPT[:5], how(2))]  # fmt: skip
    simple, engine_ = batcher(size=2, wait=0), engine(2)
    slow, fast = replay(simple, coming), replay(engine_, coming)
    assert slow[0].ttft == slow[0].latency == slow[1].latency
    assert slow[2].latency > slow[1].latency > fast[1].latency
    assert fast[2].latency < 0.3 * slow[2].latency
    assert fast[0].ttft < 0.2 * slow[0].ttft
    # 18 + 5 prompt tokens and 13 of padding, 29 steps of two rows, then 5 and 1.
    assert simple.computed == 36 + 2 * 29 + 6
    assert simple.wanted == 23 + 29 + 1 + 6
    kinds = [e.kind for e in simple.events if e.request_id == "0"]
    assert kinds == ["queued", "scheduled", "prefill", "token", "token", "finished"]
    last, end = [e.time for e in simple.events if e.request_id == "0"][-2:]
    assert end - last == pytest.approx(28 * price(2))  # its row ran on for nobody


def test_text_stops_and_usage_as_the_engine_has_them() -> None:
    params = SamplingParams(60, temperature=0, stop=("=",), logprobs=1)
    outputs = []
    for server in (batcher(wait=0), engine()):
        server.add_request(PROMPT, params, "x")
        got = []
        while server.has_work:
            got += [d for _, d in server.step()]
        outputs.append(
            (
                "".join(d.text for d in got),
                [t for d in got for t in d.token_ids],
                [s.token_id for d in got for s in d.logprobs],
                got[-1].finish_reason,
                got[-1].usage,
            )
        )
    assert outputs[0] == outputs[1] and outputs[0][3] == "stop"


def test_refusals() -> None:
    server = DynamicBatcher(model(), None)
    for prompt, params, says in (
        ([], how(2), "prompt: is empty"),
        ([9999], how(2), "outside the vocabulary"),
        ([2], how(2, n=2), "n, stop"),
        ([2], how(2, stop=("x",)), "n, stop"),
        ([2], how(600), "max_tokens: exceeds the context of 512"),
    ):
        with pytest.raises(R1Error, match=says):
            server.add_request(prompt, params)
    assert not server.has_work
    for fields in ({"max_batch": 0}, {"max_wait": -1.0}):
        with pytest.raises(R1Error, match="too small"):
            DynamicBatcher(model(), None, **fields)


def test_clocks() -> None:
    wall, made_up = Clock(), SimulatedClock(lambda tokens: tokens / 10)
    began = wall.now()
    wall.ran(1000)
    wall.wait(began + 0.02)
    assert wall.now() - began >= 0.02
    before = time.perf_counter()
    made_up.ran(5)
    made_up.wait(100.0)
    made_up.wait(3.0)  # is past
    assert made_up.now() == 100.0 and time.perf_counter() - before < 5


def test_an_answers_times() -> None:
    answer = Answer(1.0, [5, 6, 7], [1.5, 1.5, 2.0])
    assert (answer.ttft, answer.latency, answer.gaps) == (0.5, 1.0, [0.0, 0.5])
