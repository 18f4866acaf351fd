"""Evaluation with verifiers: accuracy, format, length, pass@k, by difficulty.

As R1 (arXiv 2501.12948, section 3) reports pass@1 as a mean over samples, so
do we when sampling; with greedy decoding there is one answer to a problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import Sampling
from r1lite.model import R1Model
from r1lite.settings import Section
from r1lite.tasks import Problem, problems
from r1lite.tasks.families import family_level
from r1lite.training.rollout import Rollout, rollouts

BATCH = 512  # rows sampled at once: fewer waste Python time, more waste memory


class EvalConfig(Section):
    """Section `[evaluation]`. `levels` are "family/level" names.

    `problems` are unique problems a level; `validation_problems` the same for
    everything that is chosen. pass@k draws `pass_k` samples for each of
    `pass_problems` problems a level at temperature 1.
    """

    levels: tuple[str, ...] = ()
    problems: int = 512
    validation_problems: int = 256
    max_new_tokens: int = 96
    pass_k: int = 16
    pass_problems: int = 64
    sweep: tuple[float, ...] = (0.4, 0.7, 1.0)


@dataclass(frozen=True)
class LevelResult:
    """One policy on the problems of one family and level.

    `accuracy` and `format` are shares of answers, `mean_length` tokens of an
    answer, `pass_k` the share of problems solved by any of k samples, `cons_k`
    by the answer that most of them give.
    """

    family: str
    level: int
    n: int
    accuracy: float
    format: float
    think_share: float
    mean_length: float
    pass_k: float | None = None
    cons_k: float | None = None


def problem_set(
    config: EvalConfig, split: str, count: int, seed: int = 0
) -> list[Problem]:
    """`count` unique problems of every level, the same for every policy."""
    found: list[Problem] = []
    for name in config.levels:
        _, level = family_level(name)
        found += problems(name.partition("/")[0], level, split, count, seed)
    return found


def answer(
    model: R1Model,
    tokenizer: R1Tokenizer,
    asked: Sequence[Problem],
    how: Sampling,
    n: int = 1,
    think: bool = False,
) -> list[Rollout]:
    """`n` answers to each problem, in order, in batches of like lengths."""
    model.eval()
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].question))
    size = max(1, BATCH // n)
    found: dict[int, list[Rollout]] = {}
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        made = rollouts(
            model, tokenizer, [asked[i] for i in chosen], how, n, think=think
        )
        for place, i in enumerate(chosen):
            found[i] = made[place * n : (place + 1) * n]
    return [r for i in range(len(asked)) for r in found[i]]


def by_level(items: Sequence[Rollout], n: int = 1) -> list[LevelResult]:
    """Summarise answers (`n` to a problem, side by side) per family and level."""
    groups: dict[tuple[str, int], list[Rollout]] = {}
    for item in items:
        key = (item.problem.family, item.problem.level)
        groups.setdefault(key, []).append(item)
    return [
        LevelResult(
            family=family,
            level=level,
            n=len(rows) // n,
            accuracy=fmean(r.score.accuracy for r in rows),
            format=fmean(_strict_format(r) for r in rows),
            think_share=fmean(r.parsed.has_think for r in rows),
            mean_length=fmean(len(r.response) for r in rows),
            pass_k=_pass_k(rows, n) if n > 1 else None,
            cons_k=_cons_k(rows, n) if n > 1 else None,
        )
        for (family, level), rows in groups.items()
    ]


def _strict_format(r: Rollout) -> float:
    """R1's format: reasoning in its tags, then the answer in its tags."""
    return float(r.parsed.well_formed and r.parsed.has_think)


def _pass_k(rows: Sequence[Rollout], n: int) -> float:
    groups = [rows[i : i + n] for i in range(0, len(rows), n)]
    right = [sum(int(r.score.accuracy) for r in group) for group in groups]
    return fmean(pass_at_k(n, correct, n) for correct in right)


def _cons_k(rows: Sequence[Rollout], n: int) -> float:
    return fmean(majority(rows[i : i + n]) for i in range(0, len(rows), n))


def majority(group: Sequence[Rollout]) -> float:
    """1 if the answer that most samples of one problem give is right, else 0.

    R1's cons@64. Samples without an answer do not vote; of two answers with as
    many votes the one given first counts.
    """
    votes = Counter(r.parsed.answer for r in group if r.parsed.answer is not None)
    if not votes:
        return 0.0
    ((winner, _),) = votes.most_common(1)  # in order of first appearance
    return next(r.score.accuracy for r in group if r.parsed.answer == winner)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that k of n samples hold a correct one.

    Source: Chen et al., arXiv 2107.03374, eq. 1.
    """
    if n - correct < k:
        return 1.0
    return 1.0 - comb(n - correct, k) / comb(n, k)


def pooled_accuracy(results: Sequence[LevelResult]) -> float:
    """Accuracy over all problems of all levels."""
    return sum(r.accuracy * r.n for r in results) / sum(r.n for r in results)
