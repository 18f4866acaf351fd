"""One place for what every test needs: calm threads and fixed seeds."""

from __future__ import annotations

import os

# Read when OpenMP starts, so before torch is imported: a waiting thread sleeps
# instead of spinning, otherwise two processes on two cores starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels run in Triton's interpreter: read when they are defined.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails

import random
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings

matplotlib.use("Agg")  # not by MPLBACKEND, which the chapters' kernels inherit
torch.set_num_threads(min(2, os.cpu_count() or 1))
settings.register_profile("r1lite", deadline=None, derandomize=True)
settings.load_profile("r1lite")


@pytest.fixture(autouse=True)
def _same_numbers_every_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed everything before each test and undo global switches after it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
