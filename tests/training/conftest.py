"""A tiny model and tokenizer for the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r1lite.config import R1Config
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.model import R1Model
from r1lite.tasks import stream
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog

SHARES = {"chain/3": 1.0}


@pytest.fixture(scope="session")
def tokenizer() -> R1Tokenizer:
    problem_at = stream(SHARES, 0).problem_at
    problems = [problem_at(i) for i in range(200)]
    texts = [t for p in problems for t in (p.question, p.reasoning, p.answer)]
    return R1Tokenizer.train(texts, 300)


@pytest.fixture
def model(tokenizer: R1Tokenizer) -> R1Model:
    torch.manual_seed(0)
    return R1Model(
        R1Config.preset("nano").with_(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_nextn_predict_layers=0,
            n_routed_experts=4,
            max_position_embeddings=128,
        )
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, 0, MetricsLog(tmp_path, tensorboard=False), progress=False)
