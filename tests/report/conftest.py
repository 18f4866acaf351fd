"""A synthetic run directory. Its numbers are made up by formulas below and say
nothing about any model; they only have the shape of a real run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1lite.report import (
    Attempt,
    Control,
    Demonstrations,
    Domain,
    Evaluation,
    Goal,
    Headline,
    HeldOut,
    Machine,
    Model,
    Reply,
    Report,
    Sample,
    SeedResult,
    Source,
    Stage,
    Tokenizer,
)
from r1lite.report.html import build

MACHINE = Machine(
    cpu="Synthetic CPU",
    cores=2,
    memory_gb=16.0,
    system="Linux x86_64",
    python="3.11.0",
    torch="2.13.0",
    commit="0123456789ab",
)
LEVELS = {"chain": (2, 3, 4, 5), "countdown": (3, 4)}
# policy, decode, forced: (mean accuracy, tokens, format, share that thinks)
WAYS: dict[tuple[str, str, bool], tuple[float, float, float, float]] = {
    ("base", "greedy", False): (0.04, 9.0, 0.02, 0.0),
    ("sft", "greedy", False): (0.28, 8.2, 0.991, 0.02),
    ("sft", "greedy", True): (0.955, 36.4, 0.992, 1.0),
    ("base", "T=0.4", False): (0.05, 9.3, 0.02, 0.0),
    ("sft", "T=0.7", False): (0.35, 14.9, 0.978, 0.24),
    ("sft-clean", "greedy", False): (0.948, 36.0, 0.997, 1.0),
    ("sft-more", "greedy", False): (0.31, 9.0, 0.993, 0.05),
    ("expert-iteration", "greedy", False): (0.93, 35.1, 0.996, 0.99),
    ("grpo", "greedy", False): (0.945, 35.2, 0.998, 1.0),
}


@pytest.fixture(scope="session")
def machine() -> Machine:
    return MACHINE


@pytest.fixture(scope="session")
def full_report() -> Report:
    """A report in which every optional part is filled; not to be changed."""
    evaluations = [
        Evaluation(
            policy=way[0],
            decode=way[1],
            forced_think=way[2],
            split=split,
            family=family,
            level=level,
            n=512 if split == "test" else 256,
            accuracy=max(0.0, min(1.0, accuracy + 0.03 * (3.5 - level))),
            pass16=min(1.0, accuracy + 0.2) if way[0] in ("sft", "grpo") else None,
            format=fmt,
            mean_length=length * level / 3.5,
            think_share=thinks,
        )
        for split in ("test", "validation")
        for way, (accuracy, length, fmt, thinks) in WAYS.items()
        for family, levels in LEVELS.items()
        for level in levels
    ]
    return Report(
        recipe="nano (synthetic)",
        seed=0,
        created="2026-01-01 12:00",
        machine=MACHINE,
        model=Model(
            name="nano",
            params_total=1_912_320,
            params_active=903_680,
            layers=4,
            hidden_size=128,
            experts=8,
            experts_per_token=2,
            shared_experts=1,
            context=256,
        ),
        tokenizer=Tokenizer(
            vocab_size=2048,
            bytes_per_token=3.1,
            bytes_per_token_by_domain={"general": 3.4, "code": 3.0},
        ),
        mixture=_mixture(),
        demonstrations=Demonstrations(
            examples=24_000,
            answer_only_asked=0.7,
            answer_only=0.699,
            wrong_steps_asked=0.1,
            wrong_steps=0.102,
        ),
        stages=[
            Stage(name="data", seconds=9.4, note="mixture and tokenizer"),
            Stage(
                name="pretrain",
                seconds=241.0,
                tokens=5_900_000,
                tokens_per_s=24_500,
                steps=600,
            ),
            Stage(
                name="sft", seconds=41, tokens=900_000, tokens_per_s=22_000, steps=200
            ),
            Stage(
                name="grpo",
                seconds=170,
                tokens=4_100_000,
                tokens_per_s=24_100,
                steps=90,
            ),
            Stage(name="evaluation", seconds=66.0),
        ],
        held_out=[
            HeldOut(
                domain=name,
                bytes=200_000,
                bits_per_byte={"base": bits, "sft": bits + 0.1, "grpo": bits + 0.12},
            )
            for name, bits in (
                ("general", 2.1),
                ("code", 1.9),
                ("multilingual", 2.6),
                ("mathematics", 1.1),
            )
        ],
        headline=Headline(budget_tokens=4_100_000, budget_seconds=170.0),
        evaluations=evaluations,
        controls=_controls(),
        goals=[
            Goal(name="Accuracy after SFT", value=0.28, at_most=0.4),
            Goal(name="Accuracy after GRPO", value=0.945, at_least=0.9),
            Goal(name="Length, times that of SFT", value=4.3, at_least=3, unit="x"),
            Goal(name="Time of RL", value=250.0, at_most=240.0, unit="s"),
        ],
        tried=[
            Attempt(
                name="Chains, digits as words", outcome="Too long for the context."
            ),
            Attempt(name="Chains, one token a digit", outcome="Learns.", kept=True),
        ],
        samples=_samples(),
        seeds=[
            SeedResult(
                seed=seed,
                before=0.28 + 0.01 * seed,
                after=0.945 - 0.01 * seed,
                before_length=8.2,
                after_length=35.2 + seed,
                format=0.998,
                controls={1: 0.955, 4: 0.31},
                rl_seconds=170.0 + seed,
            )
            for seed in range(3)
        ],
        notes=["Synthetic numbers made by a test."],
    )


def _mixture() -> list[Domain]:
    shares = {
        "general": (0.6, 0.603),
        "code": (0.2, 0.198),
        "multilingual": (0.15, 0.149),
        "mathematics": (0.05, 0.05),
    }
    return [
        Domain(
            name=name,
            asked=asked,
            measured=measured,
            tokens=int(5_900_000 * measured),
            bytes=int(18_000_000 * measured),
            sources=[Source(name=f"{name}-texts", package="pkg", licence="MIT")],
        )
        for name, (asked, measured) in shares.items()
    ]


def _controls() -> list[Control]:
    texts = {
        1: ("SFT made to start with <think>", ("sft", "greedy", True)),
        2: ("SFT at its best temperature", ("sft", "T=0.7", False)),
        3: ("SFT on clean traces only", ("sft-clean", "greedy", False)),
        4: ("Continued SFT on the same mix", ("sft-more", "greedy", False)),
        5: ("Expert iteration", ("expert-iteration", "greedy", False)),
    }
    return [
        Control(
            id=number,
            description=text,
            policy=way[0],
            decode=way[1],
            forced_think=way[2],
            budget_tokens=4_100_000 if number > 2 else None,
            budget_seconds=168.0 if number > 2 else None,
        )
        for number, (text, way) in texts.items()
    ]


def _samples() -> list[Sample]:
    end = "<｜end▁of▁sentence｜>"
    steps = "3 + 8 = 11 -> 1; 1 * 4 = 4; 4 - 9 = -5 -> 5"
    return [
        Sample(
            question="3 + 8 * 4 - 9 mod 10, from left to right",
            reference="5",
            family="chain",
            level=4,
            replies={
                "base": Reply(text="of the house and", correct=False, length=5),
                "sft": Reply(text=f"<answer>7</answer>{end}", correct=False, length=6),
                "grpo": Reply(
                    text=f"<think>{steps}</think><answer>5</answer>{end}",
                    correct=True,
                    length=37,
                ),
            },
        ),
        Sample(
            question="Reach 24 with 3, 5 and 9",
            reference="(9 - 5) * 6",
            family="countdown",
            level=3,
            replies={
                "sft": Reply(text="<think>9 - 5 = 4; 4 * 3", correct=False),
                "grpo": Reply(text="", correct=False, length=0),
            },
        ),
    ]


def synthetic_metrics() -> list[dict[str, Any]]:
    """Records of three stages with noise on smooth curves."""
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for stage, steps, start, end in (
        ("pretrain", 600, 7.6, 3.4),
        ("sft", 200, 2.1, 0.7),
        ("grpo", 90, 0.02, 0.01),
    ):
        for step in range(steps):
            done = step / steps
            record = {
                "stage": stage,
                "step": step,
                "time": 0.4 * step,
                "tokens": 9800 * (step + 1),
                "tokens_per_s": 24_000.0 + 500 * rng.normal(),
                "loss": end + (start - end) * np.exp(-6 * done) + 0.05 * rng.normal(),
                "lr": 3e-3 * (1 - done),
                "grad_norm": float(0.5 + rng.gamma(2, 0.1)),
                "max_violation": float(0.1 + np.exp(-8 * done) + 0.02 * rng.random()),
                "memory_mb": 800.0 + step,
            }
            if step % 10 == 0:
                load = rng.dirichlet(np.full(8, 5 + 100 * done), size=3)
                record["load"] = load.round(4).tolist()
            if stage == "grpo":
                record |= _rl(done, rng)
            records.append(record)
    return records


def _rl(done: float, rng: np.random.Generator) -> dict[str, float]:
    learnt = 1 / (1 + np.exp(-14 * (done - 0.35)))
    return {
        "reward": 0.3 + 0.75 * learnt + 0.03 * rng.normal(),
        "accuracy": 0.25 + 0.7 * learnt + 0.03 * rng.normal(),
        "format": 0.97 + 0.02 * learnt,
        "length": 8 + 28 * learnt + rng.normal(),
        "frac_zero_std": 0.1 + 0.6 * learnt,
        "kl": 0.08 * learnt,
        "clip_frac": 0.02 + 0.01 * rng.random(),
        "entropy": 0.5 - 0.35 * learnt,
    }


def write_run(run_dir: Path, report: Report) -> Path:
    """Fill a run directory with every file that the report reads."""
    report.save(run_dir)
    lines = [json.dumps(record) for record in synthetic_metrics()]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run_dir / "recipe.toml").write_text('name = "nano"\nseed = 0\n\n[model]\n')
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path, full_report: Report) -> Path:
    return write_run(tmp_path, full_report)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, full_report: Report) -> str:
    """The page of the full synthetic run, built once, in less than 10 s."""
    run = write_run(tmp_path_factory.mktemp("run"), full_report)
    start = time.perf_counter()
    path = build(run)
    assert time.perf_counter() - start < 10
    assert path == run / "report.html"
    return path.read_text("utf-8")
