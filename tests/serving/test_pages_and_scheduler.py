"""The allocator and the scheduler under everything that can happen to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.paper_model import END, VOCAB, best, check_pages, histories, paper_engine

from r1lite.serving.engine import Engine
from r1lite.serving.pages import PagePool, chain_hash
from r1lite.serving.types import (
    EngineConfig,
    PromptTooLong,
    QueueFull,
    SamplingParams,
)

STEPS = {"all": 0, "preempted": 0, "shared": 0, "hits": 0, "accepted": 0, "aborted": 0}

PROMPTS = st.builds(
    lambda start, rest: [2 + start] * 9 + rest,
    st.integers(0, 1),
    st.lists(st.integers(2, VOCAB - 1), max_size=12),
)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 14),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.integers(-2, 2),
    ignore_eos=st.booleans(),
)
CONFIGS = st.builds(
    EngineConfig,
    num_pages=st.sampled_from([12, 16, 40]),
    page_size=st.sampled_from([3, 4]),
    max_batch_tokens=st.sampled_from([6, 9, 40]),
    max_running=st.sampled_from([3, 6]),
    max_waiting=st.just(12),
    prefix_cache=st.sampled_from([True, True, False]),
    speculate=st.booleans(),
    aging=st.sampled_from([1, 8]),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def weak_hash(parent: int, tokens: tuple[int, ...]) -> int:
    """Most prefixes have the same key as another one."""
    return chain_hash(parent, tokens) % 4


def alone(prompt: list[int], params: SamplingParams) -> dict[int, list[int]]:
    """What a request gets with nobody beside it, in one piece, undrafted."""
    if params.temperature:
        config = EngineConfig(num_pages=40, max_batch_tokens=64, prefix_cache=False)
        return collect(paper_engine(config), prompt, params)
    made: list[int] = []
    while len(made) < params.max_tokens:
        made.append(best(histories([*prompt, *made])[-1]))
        if made[-1] == END and not params.ignore_eos:
            break
    return dict.fromkeys(range(params.n), made)


def collect(
    engine: Engine, prompt: list[int], params: SamplingParams
) -> dict[int, list[int]]:
    """One request to its end; tokens by sample."""
    engine.add_request(prompt, params)
    made: dict[int, list[int]] = {}
    while engine.has_work:
        for _, delta in engine.step():
            made.setdefault(delta.index, []).extend(delta.token_ids)
    return made


class Server(RuleBasedStateMachine):
    """Requests come and go while an engine on paper runs."""

    @initialize(config=CONFIGS, weak=st.booleans())
    def start(self, config: EngineConfig, weak: bool) -> None:
        """Some engine."""
        self.engine = paper_engine(config, weak_hash if weak else None)
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.made: dict[str, dict[int, list[int]]] = {}
        self.usage: set[str] = set()

    @rule(several=st.lists(st.tuples(PROMPTS, PARAMS), min_size=3, max_size=6))
    def add(self, several: list[tuple[list[int], SamplingParams]]) -> None:
        """Requests come."""
        for prompt, params in several:
            self.ask(prompt, params)

    @precondition(lambda self: self.usage & self.asked.keys())
    @rule(data=st.data(), more=st.lists(st.integers(2, 5), max_size=4), params=PARAMS)
    def turn(
        self, data: st.DataObject, more: list[int], params: SamplingParams
    ) -> None:
        """A conversation goes on: its prompt holds an answer from before."""
        name = data.draw(st.sampled_from(sorted(self.usage & self.asked.keys())))
        self.ask([*self.asked[name][0], *self.made[name][0], *more], params)

    def ask(self, prompt: list[int], params: SamplingParams) -> None:
        """Add a request if it fits at all."""
        try:
            name = self.engine.add_request(prompt, params)
        except PromptTooLong:
            assert len(prompt) + params.max_tokens > 36  # the smallest pool's room
        except QueueFull:
            assert len(self.engine.scheduler.waiting) >= 12  # and those sent back
        else:
            self.asked[name] = prompt, params

    @rule(times=st.integers(20, 60))
    def run(self, times: int) -> None:
        """Some steps; whoever is first in rank gets on in each."""
        for _ in range(times):
            if not self.engine.has_work:
                return
            STEPS["all"] += 1
            self.take(self.engine.step())
            check_pages(self.engine)
            STEPS["shared"] += any(n > 1 for n in self.engine.pool.refs)

    @precondition(lambda self: len(self.engine.requests) > 3)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A client leaves: its pages are free at once."""
        name = data.draw(st.sampled_from(sorted(self.engine.requests)))
        self.take(self.engine.abort(name))
        assert name in self.usage
        STEPS["aborted"] += 1
        del self.asked[name]

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        """Also between steps."""
        check_pages(self.engine)

    def take(self, outputs: list[Any]) -> None:
        """Deltas of one step."""
        for name, delta in outputs:
            assert name not in self.usage, "something came after the end"
            made = self.made.setdefault(name, {})
            made.setdefault(delta.index, []).extend(delta.token_ids)
            if delta.usage:
                self.usage.add(name)
                assert delta.usage.completion_tokens == sum(map(len, made.values()))

    def teardown(self) -> None:
        """Finish; everybody has what it would have had alone."""
        if not hasattr(self, "engine"):
            return
        while self.engine.has_work:
            self.run(8)
        assert self.engine.pool.used == 0
        stats = self.engine.stats()
        STEPS["preempted"] += stats.preemptions
        STEPS["hits"] += stats.prefix_hits
        STEPS["accepted"] += stats.accepted
        for name, (prompt, params) in self.asked.items():
            assert name in self.usage
            assert self.made[name] == alone(prompt, params)


def test_no_page_is_leaked_or_shared_wrongly_in_10000_steps() -> None:
    run_state_machine_as_test(
        Server, settings=settings(max_examples=90, stateful_step_count=40)
    )
    assert STEPS["all"] >= 10_000, STEPS
    # All of it happened, or the test shows nothing.
    assert min(STEPS.values()) > 100, STEPS


def test_the_engine_alone_is_the_loop_by_hand() -> None:
    """What is drawn has the engine itself as its yardstick; here is the engine's."""
    for prompt in ([2], [2, 5, 3], [7] * 30):
        for ignore in (False, True):
            params = SamplingParams(20, temperature=0, n=2, ignore_eos=ignore)
            engine = paper_engine(EngineConfig(num_pages=40, max_batch_tokens=64))
            assert collect(engine, prompt, params) == alone(prompt, params)


@pytest.mark.parametrize("speculate", [False, True])
@settings(max_examples=10)
@given(
    share=st.sampled_from([0.5, 0.9]),
    pages=st.sampled_from([8, 20]),
    running=st.integers(1, 4),
    aging=st.sampled_from([4, 16]),
)
def test_nobody_starves(
    speculate: bool, share: float, pages: int, running: int, aging: int
) -> None:
    """However many urgent requests come, one that waits is overtaken only by
    those of the next 3 * aging steps; then it is its turn.
    """
    config = EngineConfig(
        num_pages=pages,
        page_size=4,
        max_batch_tokens=max(running, 4),
        max_running=running,
        max_waiting=10_000,
        speculate=speculate,
        aging=aging,
    )
    engine = paper_engine(config)
    engine.add_request([3] * 11, SamplingParams(7, temperature=0, priority=3), "slow")
    params = SamplingParams(3, temperature=0, ignore_eos=True)
    # Everyone who may overtake, and at most 18 tokens for each, twice if preempted.
    bound = 2 * 18 * (3 * aging + 1)
    for step in range(bound):
        for _ in range(2):
            engine.add_request([2 + step % 9] * 15, params)
        if any(name == "slow" and d.usage for name, d in engine.step()):
            break
    else:
        raise AssertionError(f"not served in {bound} steps")
    assert engine.scheduler.waiting, "nobody stood in its way"


def hold(pool: PagePool, tokens: list[int]) -> list[int]:
    """Pages that hold `tokens`, known to the pool, as a sample that ran would."""
    pages, prefix = pool.match(tokens)
    for at in range(len(pages) * pool.page_size, len(tokens), pool.page_size):
        pages.append(pool.take())
        block = tuple(tokens[at : at + pool.page_size])
        if len(block) == pool.page_size:
            prefix = pool.register(pages[-1], prefix, block)
    return pages


def test_the_oldest_prefix_is_forgotten_first_and_from_its_end() -> None:
    pool = PagePool(6, 2)
    held = [hold(pool, tokens) for tokens in ([1, 2, 3, 4, 5], [6, 7, 8, 9, 0])]
    for pages in held:
        pool.release(pages)
    # Two full pages of each are known; the half ones are free again.
    assert (pool.used, len(pool.idle), len(pool.free)) == (0, 4, 2)
    (old, older, _), (new, newer, _) = held
    taken = [pool.take() for _ in range(3)]
    assert taken[2] == older, "a page was forgotten before those that follow it"
    assert len(pool.match([6, 7, 8, 9, 0])[0]) == 2
    assert pool.take() == old and not pool.available
    assert pool.refs[new] == pool.refs[newer] == 1


def test_a_prefix_whose_beginning_is_forgotten_makes_way() -> None:
    """Two computed it side by side; only one page of its beginning is known."""
    pool = PagePool(6, 2)
    block, more = (1, 2), (3, 4)
    a, b = pool.take(), pool.take()
    first = pool.register(a, None, block)
    assert pool.register(b, None, block) is first  # the same prefix, b not known
    after = pool.take()
    assert pool.register(after, first, more)
    pool.release([a])
    taken = [pool.take() for _ in range(4)]  # the last of them is a
    assert a in taken
    again = pool.register(taken[0], None, block)
    assert pool.register(taken[1], again, more), "an orphan holds its place"
    pages, _ = pool.match([*block, *more, 5])
    assert pages == taken[:2]
    pool.release(pages)
    pool.release([b, after])
    for page in taken:
        pool.release([page])
    assert not pool.used and pool.available == 6


def test_an_idle_orphan_is_a_free_page() -> None:
    pool = PagePool(3, 2)
    a, after = pool.take(), pool.take()
    first = pool.register(a, None, (1, 2))
    pool.register(after, first, (3, 4))
    pool.release([a])
    pool.release([after])
    assert [pool.take(), pool.take()][1] == a
    again = pool.register(a, None, (1, 2))
    assert pool.available == 1
    other = pool.free[0] if pool.free else next(iter(pool.idle))
    assert other == after
    assert pool.register(a, again, (3, 4)) and pool.free == [after]


def test_a_prompt_leaves_something_to_compute() -> None:
    pool = PagePool(4, 2)
    pool.release(hold(pool, [1, 2, 3, 4]))
    assert len(pool.match([1, 2, 3, 4])[0]) == 1
    assert len(pool.match([1, 2, 3, 4, 5])[0]) == 2
    assert pool.match([1, 2])[0] == [] == pool.match([2, 2, 3, 4, 5])[0]


def test_a_page_is_released_once() -> None:
    pool = PagePool(2, 2)
    page = pool.take()
    pool.share(page)
    pool.release([page])
    assert pool.used == 1
    pool.release([page])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([page])
