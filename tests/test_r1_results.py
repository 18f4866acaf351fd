"""What chapter 10 quotes is raw, and its tables are what the raw files give."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from r1lite.training import metrics

REPO = Path(__file__).parents[1]
R1 = REPO / "results" / "r1"
SEEDS = sorted(R1.glob("seed*"))
FACTS = sorted((R1 / "capability").glob("seed*.json"))
ZERO = sorted((R1 / "zero").glob("*.json"))


def benchmark(name: str) -> ModuleType:
    """A script of tests/benchmarks as a module."""
    path = REPO / "tests" / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up there
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_stage_table_is_what_the_raw_files_give() -> None:
    made = benchmark("stage_table").lines([read(s / "r1.json") for s in SEEDS])
    assert (R1 / "table.md").read_text() == "\n".join(made) + "\n"


def test_the_interval_is_students_over_seeds() -> None:
    # 2, 4, 6: mean 4, deviation 2, and 4.303 * 2 / sqrt(3) = 4.97
    assert benchmark("stage_table").interval([0.02, 0.04, 0.06]) == "4.0 ± 5.0"


def test_there_are_three_seeds_of_each_kind() -> None:
    assert [s.name for s in SEEDS] == ["seed0", "seed1", "seed2"]
    assert [f.name for f in FACTS] == ["seed0.json", "seed1.json", "seed2.json"]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: s.name)
def test_costs_and_steps_are_those_of_the_log(seed: Path) -> None:
    """Of the stages that the table's own script has trained."""
    names = benchmark("stage_table").ROWS
    recipe = tomllib.loads((seed / "recipe.toml").read_text())
    result, rows = read(seed / "r1.json"), metrics.read(seed / "metrics.jsonl")
    assert f"seed{result['seed']}" == f"seed{recipe['seed']}" == seed.name
    logged = {r["stage"] for r in rows}
    assert len(logged) == 8
    for name, (policy, forced) in names.items():
        if policy not in logged or forced:
            continue
        of_stage = [r for r in rows if r["stage"] == policy]
        assert [r["step"] for r in of_stage] == list(range(len(of_stage)))
        spent = result["rows"][name][1]
        assert spent["tokens"] == of_stage[-1]["tokens"]
        assert spent["minutes"] == pytest.approx(of_stage[-1]["time"] / 60)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: s.name)
def test_every_row_was_measured_on_the_same_problems(seed: Path) -> None:
    rows = read(seed / "r1.json")["rows"]
    assert len(rows) == 16
    assert {row[0]["n"] for row in rows.values()} == {2560}


@pytest.mark.parametrize("path", FACTS, ids=lambda p: p.stem)
def test_a_seed_of_the_held_out_facts_is_whole(path: Path) -> None:
    found, script = read(path), benchmark("capability")
    assert f"seed{found['seed']}" == path.stem
    assert found.get("finished") is not False
    assert set(script.ROWS) <= set(found)
    for stage in ("grpo", "expert1.0", "expert1.5"):
        steps = [r["step"] for r in found[f"log of {stage}"]]
        assert steps == list(range(script.RL["steps"]))


def test_starts_that_differ_in_rounding_are_different_models() -> None:
    starts = read(R1 / "capability" / "rounding.json")["starts"]
    weights = [s["weights"] for s in starts]
    assert len(set(weights)) == len(weights) >= 5
    assert {s["threads"] for s in starts} == {1, 2}
    assert {s["vectors"] for s in starts} == {"AVX2", "AVX512"}
    unmoved = next(s for s in starts if s["draw"] == 0 and s["threads"] == 1)
    assert unmoved["weights"] not in {s["weights"] for s in starts if s["draw"]}


def test_no_demonstration_shows_a_held_out_fact() -> None:
    script = benchmark("capability")
    at = script.stream(script.SHARES, 100).problem_at
    drawn = [at(i) for i in range(400)]
    held = [p for p in drawn if script.held_out(p)]
    assert 0.4 < len(held) / len(drawn) < 0.8
    tokenizer = script.R1Tokenizer.load(script.BASE)
    shown = script.demonstrations(tokenizer, 100, all_facts=False)
    hidden = {
        step.partition("=")[0]
        for p in held
        for step in p.steps
        if script.text_hash(f"fact {step.partition('=')[0]}") % 4 == 0
    }
    texts = [tokenizer.decode(shown(i).ids) for i in range(60)]
    lines = {x.partition("=")[0] for t in texts for x in t.splitlines() if "=" in x}
    assert len(hidden) > 20 and len(lines) > 20
    assert not hidden & lines


@pytest.mark.parametrize("path", ZERO, ids=lambda p: p.stem)
def test_an_r1_zero_file_is_whole(path: Path) -> None:
    found = read(path)
    assert len(found["log"]) == found["steps"] == 120
    names = set(found["after"])
    assert names == set(found["before"])
    assert all(names < set(row) for row in found["log"])


def test_habits_are_counted_by_hand() -> None:
    script = benchmark("zero")
    texts = ["7+2=9\nAnswer: 9\n", "Answer: 3\n", "wait\nwait\nAnswer: 9\n", "hm"]
    problem = script.Problem("chain", 2, "7+2", "9", ("7+2=9",), "k")
    items = [script.Tried(problem, [1], [5] * 4, [0.0] * 4, t) for t in texts]
    found = script.habits(items)
    assert found["right"] == 0.5
    assert found["answers"] == 0.75
    assert found["with steps"] == 0.75  # "hm" is a line without an answer
    assert found["right with steps"] == pytest.approx(2 / 3)
    assert found["right without"] == 0.0
    assert found["self-checks"] == 0.25
    assert found["repeats a step"] == 0.25


def test_chain7_holds_what_its_script_writes() -> None:
    found, script = read(R1 / "chain7.json"), benchmark("chain7")
    assert len(found["log"]) == found["steps"] == script.STEPS
    assert found["problems"] == script.ASKED
    assert set(found["before"]) == set(found["after"]) == {"chain/6", "chain/7"}


# What the words of chapter 10 say about these numbers.


def right(name: str) -> list[float]:
    rows = [read(s / "r1.json")["rows"][name] for s in SEEDS]
    return [100 * row[0]["accuracy"] for row in rows]


def test_grpo_is_matched_by_three_controls_and_not_by_two() -> None:
    after = right("GRPO (stage 2)")
    for name in ("(1) SFT, made to think", "(3) clean SFT", "(5) expert iteration"):
        assert all(b > a - 1 for a, b in zip(after, right(name), strict=True))
    for name in ("(4) continued SFT", "(2) SFT, best temperature 0.7"):
        assert max(right(name)) < 50 < min(after)


def test_what_the_seeds_agree_on() -> None:
    traces, own = right("student: by traces"), right("student: RL on its own")
    logits = right("student: by logits")
    assert all(a > b for a, b in zip(traces, own, strict=True))
    assert len({a > b for a, b in zip(traces, logits, strict=True)}) == 2
    third, fourth = (
        right("rejection SFT from base (stage 3)"),
        right("second RL (stage 4)"),
    )
    assert all(abs(a - b) < 1.5 for a, b in zip(third, fourth, strict=True))


def test_r1_zero_needs_a_base_that_samples_reasoning() -> None:
    nano, mathematics = (
        read(R1 / "zero" / f"{n}.json") for n in ("nano", "mathematics")
    )
    assert abs(nano["after"]["right"] - nano["before"]["right"]) < 0.02
    assert nano["log"][-1]["with steps"] < 0.1 < nano["log"][0]["with steps"]
    assert mathematics["log"][10]["with steps"] > 0.95
    shown = mathematics["controls"]["an example with steps before it"]["right"]
    assert abs(mathematics["after"]["right"] - shown) < 0.01


def test_rl_gains_no_more_on_held_out_facts_than_rivals_that_never_saw_them() -> None:
    kind, gains = "held-out facts", {}
    for key in ("grpo", "expert", "continued"):
        gains[key] = [
            100 * (f[key][kind]["right"] - f["start"][kind]["right"])
            for f in map(read, FACTS)
        ]
    means = {key: sum(by) / len(by) for key, by in gains.items()}
    assert means["grpo"] < means["expert"] < means["continued"]
    starts = read(R1 / "capability" / "rounding.json")["starts"]
    spread = [100 * s[kind] for s in starts]
    assert max(spread) - min(spread) > means["grpo"]


def test_longer_chains_are_guessed_and_the_shorter_ones_forgotten() -> None:
    found = read(R1 / "chain7.json")
    for when in ("before", "after"):
        assert found[when]["chain/7"]["right reasoning"] == 0
    assert found["before"]["chain/6"]["right"] == 1
    assert found["after"]["chain/6"]["right"] < 0.3
