"""Pairs: the better reply is better, and nothing else tells the two apart."""

from __future__ import annotations

from random import Random

import pytest

from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.tasks import check, split_of, stream
from r1lite.tasks.reward import RewardConfig, score
from r1lite.training.preferences import (
    Comparisons,
    Pair,
    answer_pair,
    format_pair,
    reply,
    sampled_pairs,
)
from r1lite.training.rollout import Rollout

PROBLEM_AT = stream({"chain/3": 1.0}, 2).problem_at


def made_up(tokenizer: R1Tokenizer, index: int, answer: str) -> Rollout:
    """An answer at once to problem `index`, in good form."""
    problem = PROBLEM_AT(index)
    prompt, ids = reply(tokenizer, problem.question, None, answer)
    parsed = chat.parse(tokenizer, ids)
    how = RewardConfig()
    found = score(problem, parsed, how)
    return Rollout(problem, prompt, ids, [0.0] * len(ids), parsed, found)


@pytest.mark.parametrize("reasons", [True, False])
def test_answer_pairs_differ_in_being_right(
    tokenizer: R1Tokenizer, reasons: bool
) -> None:
    for i in range(30):
        problem = PROBLEM_AT(i)
        pair = answer_pair(tokenizer, problem, reasons, Random(i))
        good, bad = (chat.parse(tokenizer, r) for r in (pair.chosen, pair.rejected))
        assert good.well_formed
        assert bad.well_formed
        assert good.has_think == bad.has_think == reasons
        assert check(problem, good.answer or "")
        assert not check(problem, bad.answer or "")
        assert pair.prompt == chat.prompt(tokenizer, problem.question)


@pytest.mark.parametrize("reasons", [True, False])
def test_format_pairs_differ_in_form(tokenizer: R1Tokenizer, reasons: bool) -> None:
    faults = set()
    for i in range(60):
        pair = format_pair(tokenizer, PROBLEM_AT(i), reasons, Random(i))
        assert chat.parse(tokenizer, pair.chosen).well_formed
        assert not chat.parse(tokenizer, pair.rejected).well_formed
        faults.add(len(pair.rejected) > len(pair.chosen))
    assert faults == {True, False}  # something missing, something twice


def test_comparisons_are_a_function_of_the_index(tokenizer: R1Tokenizer) -> None:
    shares = {"chain/3": 1.0, "chain/4": 1.0}
    one, two = Comparisons(tokenizer, shares, 7), Comparisons(tokenizer, shares, 7)
    assert [one.at(i) for i in range(20)] == [two.at(i) for i in range(19, -1, -1)][
        ::-1
    ]
    assert one.at(0) != Comparisons(tokenizer, shares, 8).at(0)
    kinds = [one.at(i).kind for i in range(300)]
    assert 0.1 < kinds.count("format") / 300 < 0.3


def test_held_out_pairs_are_held_out(tokenizer: R1Tokenizer) -> None:
    held = Comparisons(tokenizer, {"chain/4": 1.0}, 0, split="validation")
    assert split_of(held._stream.problem_at(3)) == "validation"
    train = Comparisons(tokenizer, {"chain/4": 1.0}, 0)
    prompts = {tuple(train.at(i).prompt) for i in range(200)}
    assert not prompts & {tuple(held.at(i).prompt) for i in range(200)}


def test_sampled_pairs_are_of_one_question_and_used_once(
    tokenizer: R1Tokenizer,
) -> None:
    right = [made_up(tokenizer, i, PROBLEM_AT(i).answer) for i in range(3)]
    wrong = [made_up(tokenizer, i, "x" * (i + 1)) for i in range(3)]
    items = [right[0]] * 4 + [right[1], wrong[1], wrong[1], right[1]] + [wrong[2]] * 4
    pairs = sampled_pairs(items, 4)
    want = Pair(right[1].prompt, right[1].response, wrong[1].response, "sampled")
    assert pairs == [want, want]  # all-right and all-wrong questions give none
    assert len(sampled_pairs(items, 4, keep=1)) == 1
    assert sampled_pairs(items[4:8], 4, seed=1) == [want, want]


def test_a_right_answer_in_bad_form_is_no_better_reply(tokenizer: R1Tokenizer) -> None:
    good = made_up(tokenizer, 0, PROBLEM_AT(0).answer)
    unfinished = made_up(tokenizer, 0, PROBLEM_AT(0).answer)
    unfinished.response = unfinished.response[:-1]
    unfinished.parsed = chat.parse(tokenizer, unfinished.response)
    unfinished.score = score(unfinished.problem, unfinished.parsed, RewardConfig())
    assert unfinished.score.accuracy == 1
    assert sampled_pairs([unfinished, made_up(tokenizer, 0, "no")], 2) == []
    assert len(sampled_pairs([good, made_up(tokenizer, 0, "no")], 2)) == 1
