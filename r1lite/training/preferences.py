"""Preference pairs: two replies to one question, the better one known.

People compared replies for InstructGPT (arXiv 2203.02155); here a verifier does.
Pairs come from demonstrations, right against wrong or well-formed against
malformed, and from a model's own answers, which is where a reward is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.tasks import Problem, Stream, corrupt
from r1lite.tasks.problem import mix, text_hash
from r1lite.training.rollout import Rollout

_CHOICES = text_hash("preferences: choices")


@dataclass(frozen=True)
class Pair:
    """One comparison, in token ids; a reply holds its end token if it has one.

    `kind`: "answer" (right against wrong), "format" (well-formed against
    malformed) or "sampled" (a model's own right against its own wrong answer).
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    kind: str


def reply(
    tokenizer: R1Tokenizer, question: str, reasoning: str | None, answer: str
) -> tuple[list[int], list[int]]:
    """(prompt, reply) as ids; without reasoning the reply answers at once."""
    whole = chat.example(tokenizer, question, reasoning, answer)
    start = whole.mask.index(True)
    return whole.ids[:start], whole.ids[start:]


def answer_pair(
    tokenizer: R1Tokenizer, problem: Problem, reasons: bool, rng: Random
) -> Pair:
    """The right answer against a wrong one, both reasoned or both at once."""
    steps, wrong = corrupt(problem, rng)
    thoughts = (problem.reasoning, steps) if reasons else (None, None)
    prompt, good = reply(tokenizer, problem.question, thoughts[0], problem.answer)
    _, bad = reply(tokenizer, problem.question, thoughts[1], wrong)
    return Pair(prompt, good, bad, "answer")


def format_pair(
    tokenizer: R1Tokenizer, problem: Problem, reasons: bool, rng: Random
) -> Pair:
    """A right answer against the same one with a fault in its form.

    The fault: a tag or the end token is missing, or the answer stands there twice.
    """
    reasoning = problem.reasoning if reasons else None
    prompt, good = reply(tokenizer, problem.question, reasoning, problem.answer)
    control = [i for i, x in enumerate(good) if x < len(tokenizer.CONTROL)]
    bad = list(good)
    if rng.random() < 0.75:
        del bad[rng.choice(control)]
    else:
        bad[control[-1] : control[-1]] = good[control[-3] : control[-1]]
    return Pair(prompt, good, bad, "format")


class Comparisons:
    """Endless pairs from demonstrations; the index alone decides which.

    Args:
        shares: "family/level" -> weight, as for a stream of problems.
        reasons: share of pairs with reasoning in both replies.
        malformed: share of pairs about form.
        split: of the problems; held-out pairs come from "validation".
    """

    def __init__(
        self,
        tokenizer: R1Tokenizer,
        shares: Mapping[str, float],
        seed: int,
        reasons: float = 0.5,
        malformed: float = 0.2,
        split: str = "train",
    ) -> None:
        self.tokenizer, self.reasons, self.malformed = tokenizer, reasons, malformed
        self._stream = Stream(shares, seed, split)
        self._seed = mix(_CHOICES, text_hash(split), seed)

    def at(self, index: int) -> Pair:
        """Pair number `index` (0, 1, 2, ...)."""
        rng = Random(mix(self._seed, index))
        make = format_pair if rng.random() < self.malformed else answer_pair
        reasons = rng.random() < self.reasons
        return make(self.tokenizer, self._stream.problem_at(index), reasons, rng)


def sampled_pairs(
    items: Sequence[Rollout], group: int, keep: int = 2, seed: int = 0
) -> list[Pair]:
    """Right against wrong answers of one question, at most `keep` a question.

    `items`: `group` answers to each question, side by side. A question whose
    answers are all right or all wrong gives no pair, and none is used twice.
    """
    pairs: list[Pair] = []
    for at in range(0, len(items), group):
        answers = list(items[at : at + group])
        Random(mix(_CHOICES, seed, at)).shuffle(answers)
        good = [r for r in answers if r.score.accuracy == 1 and r.parsed.well_formed]
        bad = [r for r in answers if r.score.accuracy == 0]
        for a, b in list(zip(good, bad, strict=False))[:keep]:
            pairs.append(Pair(a.prompt, a.response, b.response, "sampled"))
    return pairs
