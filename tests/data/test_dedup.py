"""Duplicates and contamination: against sets of words, planted copies, counts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from r1lite.data import mixture
from r1lite.data.config import DataConfig
from r1lite.data.corpus import hold_out
from r1lite.data.dedup import (
    TestText,
    near_duplicates,
    shingles,
    signature,
    similarity,
)
from r1lite.data.domains import load_domains
from r1lite.data.tokenizer import R1Tokenizer

WORDS = [f"w{i}" for i in range(400)]


def text_of(seed: int, n: int = 80) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


def slow(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def swap(text: str, places: list[int]) -> str:
    words = text.split()
    for i in places:
        words[i] = f"new{i}"
    return " ".join(words)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shingles_are_runs_of_words(n: int) -> None:
    a, b = text_of(1), swap(text_of(1), [10, 40])
    x, y = slow(a, n), slow(b, n)
    assert len(shingles(a, n)) == len(x)
    assert similarity(shingles(a, n), shingles(b, n)) == len(x & y) / len(x | y)
    assert np.array_equal(shingles(a, n), shingles(a.upper().replace(" ", "\n"), n))


def test_signs_and_languages() -> None:
    assert len(shingles("文件已存在", 1)) == 5  # a word each, for there are no blanks
    assert len(shingles("a + b = c", 1)) == 5
    assert not np.intersect1d(shingles("3 + 4", 3), shingles("3 - 4", 3)).size
    assert len(shingles("only three words", 5)) == 1
    assert len(shingles(" \n", 5)) == 0
    # The order of words counts.
    assert similarity(shingles("a b c", 2), shingles("c b a", 2)) == 0


def test_a_signature_estimates_the_similarity() -> None:
    a = text_of(1, 400)
    for places in ([], [50], list(range(0, 400, 40)), list(range(0, 400, 8))):
        one, two = shingles(a), shingles(swap(a, places))
        agree = (signature(one, 1024) == signature(two, 1024)).mean()
        assert agree == pytest.approx(similarity(one, two), abs=0.06)
    assert signature(shingles(a)).shape == (64,)


def test_near_duplicates_name_the_text_they_repeat() -> None:
    texts = [text_of(i) for i in range(40)]
    texts += [swap(texts[7], [3]), texts[9] + " end", swap(texts[7], [3, 4])]
    texts += [swap(texts[11], list(range(0, 80, 6)))]  # too different
    found = near_duplicates(texts, 0.8)
    assert found == [None] * 40 + [7, 9, 7, None]
    assert near_duplicates([], 0.8) == []
    assert near_duplicates(["", "...", "", "..."], 0.8) == [None, None, None, 1]


def test_a_chain_of_small_changes_does_not_swallow_all() -> None:
    # Each is near its neighbour; only those near a *kept* text go.
    texts = [swap(text_of(1, 100), list(range(i))) for i in range(0, 60, 3)]
    found = near_duplicates(texts, 0.8)
    kept = [i for i, twin in enumerate(found) if twin is None]
    assert 1 < len(kept) < len(texts)
    assert all(found[twin] is None for twin in found if twin is not None)


def test_overlap_counts_ngrams() -> None:
    test = text_of(1, 30)
    protected = TestText([test, "too short"], n=10)
    assert protected.overlap(test) == 1.0
    assert protected.overlap(text_of(2, 500)) == 0.0
    copied = f"{text_of(3, 40)} {' '.join(test.split()[5:20])} {text_of(4, 40)}"
    shared = 15 - 10 + 1
    assert protected.overlap(copied) == pytest.approx(shared / (95 - 10 + 1))
    assert protected.overlap("too short") == 0.0
    assert TestText([], 10).overlap(test) == 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(60):
        (tmp_path / f"{i:02}.txt").write_text(text_of(i))
    (tmp_path / "70.txt").write_text(swap(text_of(5), [3]))
    return tmp_path


def config(folder: Path, **more: float) -> DataConfig:
    sources = {"general": (f"folder:{folder}",)}
    return DataConfig(mixture={"general": 1.0}, sources=sources, **more)


def test_the_mixture_removes_and_counts(folder: Path, tokenizer: R1Tokenizer) -> None:
    plain = mixture.build(config(folder), tokenizer, 2000, 0)
    assert set(plain.summary["domains"]["general"]["removed"].values()) == {0}
    (held,) = load_domains(config(folder), {})["general"].held[:1]
    (folder / "80.txt").write_text(text_of(99, 40) + " " + held)  # half of it a test
    problem = text_of(7, 80)
    found = load_domains(
        config(folder, near_duplicates=0.8, overlap=0.4), {}, tests=[problem]
    )["general"]
    texts = [t for c in found.corpora for t in c.texts]
    assert held in found.held
    assert swap(text_of(5), [3]) not in [*texts, *found.held]
    assert problem not in texts
    assert not any(held in t for t in texts)
    removed = found.removed
    assert (removed.near, removed.contaminated) == (1, 2)
    assert removed.near_bytes == len(swap(text_of(5), [3]))
    assert len(texts) + len(found.held) == 62 - 3


def test_a_text_held_out_of_one_domain_is_not_trained_on_in_another() -> None:
    texts = [text_of(i) for i in range(20)]
    kept_out = hold_out(texts, 0.1)
    copies = [f"{t} and one word more" for t in texts]
    domains = {"code": copies, "general": texts}  # judged first, and last
    for mixture_of in (domains, dict(reversed(domains.items()))):
        chosen = DataConfig(
            mixture=dict.fromkeys(mixture_of, 0.5),
            sources=dict.fromkeys(mixture_of, ()),
            heldout=0.1,
            overlap=0.5,
        )
        loaded = load_domains(chosen, domains)
        trained = {t for d in loaded.values() for c in d.corpora for t in c.texts}
        assert trained and kept_out
        assert not trained & {f"{t} and one word more" for t in kept_out}
        held_copies = loaded["code"].held
        assert not trained & {t.removesuffix(" and one word more") for t in held_copies}


def test_no_twin_of_a_held_out_text_is_trained_on(folder: Path) -> None:
    for i in range(60):
        (folder / f"twin{i:02}.txt").write_text(swap(text_of(i), [7]))
    leak = load_domains(config(folder, heldout=0.2), {})["general"]
    clean = load_domains(config(folder, heldout=0.2, near_duplicates=0.8), {})
    for found, leaky in ((leak, True), (clean["general"], False)):
        known = [shingles(t) for c in found.corpora for t in c.texts]
        close = [
            max(similarity(shingles(t), k) for k in known) > 0.8 for t in found.held
        ]
        assert any(close) == leaky
