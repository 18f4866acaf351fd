"""Paged attention is the model's own attention, however rows are put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_model

from r1lite.model import R1Model
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.layer import MoE
from r1lite.serving.cache import LatentPages, Ragged, Span, page_bytes
from r1lite.serving.steady import dispatch_steady, fill_up

PAGE, PAGES = 4, 40


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def made() -> R1Model:
    """Fixed weights."""
    torch.manual_seed(1)
    return tiny_model(q_lora_rank=10)


def run(
    model: R1Model,
    pages: LatentPages,
    texts: list[list[int]],
    spans: list[Span],
    kernel: bool,
) -> torch.Tensor:
    """States of all new tokens, one after the other."""
    batch = Ragged(pages, spans, kernel)
    ids = [
        i for t, s in zip(texts, spans, strict=True) for i in t[s.start :][: s.count]
    ]
    ids += ids[:1] * (batch.rows - len(ids))
    cache: Any = batch
    with torch.inference_mode():
        hidden = model.hidden(
            torch.tensor([ids]), position_ids=batch.positions[None], cache=cache
        )
    return hidden[0, : batch.real]


LENGTHS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 8)), min_size=1, max_size=6
)


@settings(max_examples=25)
@given(lengths=LENGTHS, kernel=st.booleans(), seed=st.integers(0, 9))
def test_any_mix_of_prompts_and_decoding_rows_gives_the_models_states(
    lengths: list[tuple[int, int]], kernel: bool, seed: int
) -> None:
    """Scattered pages, ragged lengths, both ways to read them."""
    model = made()
    draw = torch.Generator().manual_seed(seed)
    pages = LatentPages(model, PAGES, PAGE)
    pages.data.normal_(generator=draw)  # a page's past owner left something
    free = torch.randperm(PAGES, generator=draw).tolist()
    texts, spans = [], []
    for past, new in lengths:
        texts.append(torch.randint(2, 61, (past + new,), generator=draw).tolist())
        own = [free.pop() for _ in range(-(-(past + new) // PAGE))]
        spans.append(Span(past, new, own))
    before = [Span(0, s.start, s.pages) for s in spans if s.start]
    with_past = [t for t, s in zip(texts, spans, strict=True) if s.start]
    if before:
        run(model, pages, with_past, before, kernel)
    got = run(model, pages, texts, spans, kernel).split([s.count for s in spans])
    for text, span, states in zip(texts, spans, got, strict=True):
        with torch.inference_mode():
            want = model.hidden(torch.tensor([text]))[0, span.start :]
        torch.testing.assert_close(states, want, atol=2e-5, rtol=2e-5)


def test_filling_rows_write_nowhere_that_is_read() -> None:
    model = made()
    pages = LatentPages(model, PAGES, PAGE)
    run(model, pages, [[5, 6, 7]], [Span(0, 3, [2])], False)
    touched = pages.data.abs().sum((0, 2, 3)).nonzero()[:, 0].tolist()
    assert touched == [2, PAGES]  # the page, and the scratch page behind the last
    assert pages.data[:, 2, 3].abs().sum() == 0  # the page's free place


def test_a_long_past_is_summed_in_blocks() -> None:
    """More than 128 tokens, next to a short one."""
    torch.manual_seed(2)
    model = tiny_model(max_position_embeddings=300)
    pages = LatentPages(model, 80, PAGE)
    texts = [torch.randint(2, 61, (n,)).tolist() for n in (280, 20)]
    spans = [Span(0, 279, list(range(70))), Span(0, 19, list(range(70, 75)))]
    run(model, pages, texts, spans, False)
    last = [Span(279, 1, spans[0].pages), Span(19, 1, spans[1].pages)]
    got = run(model, pages, texts, last, False)
    for row, text in zip(got, texts, strict=True):
        with torch.inference_mode():
            want = model.hidden(torch.tensor([text]))[0, -1]
        torch.testing.assert_close(row, want, atol=3e-5, rtol=3e-5)


def test_the_mtp_block_has_pages_of_its_own() -> None:
    torch.manual_seed(0)
    model = tiny_model(num_nextn_predict_layers=1)
    assert len(LatentPages(model, 2, PAGE).data) == 2
    assert len(LatentPages(model, 2, PAGE, mtp=True).data) == 3
    # 2 layers, 4 tokens, 12 + 8 numbers, 4 bytes
    assert page_bytes(model, PAGE) == 2 * 4 * 20 * 4
    assert page_bytes(model, PAGE, mtp=True) == 3 * 4 * 20 * 4


def test_steady_dispatch_is_dispatch() -> None:
    model = made()
    layer = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(21, 32)
    with torch.inference_mode():
        routing = layer.gate(x)
        want = dispatch_local(x, routing, layer.experts)
        got = dispatch_steady(x, routing, layer.experts)
    torch.testing.assert_close(got, want)
    assert [fill_up(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
