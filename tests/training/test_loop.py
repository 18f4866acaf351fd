"""What the loop logs about the routers."""

from __future__ import annotations

import torch

from r1lite.training.loop import _load_metrics


def test_a_router_without_tokens_does_not_count() -> None:
    load = torch.tensor([[6, 2], [4, 4], [0, 0]])  # the last is the MTP module's
    values = _load_metrics(load, keep_all=True)
    assert values["max_violation"] == 0.25  # mean of 0.5 and 0
    assert values["load"] == [[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]]


def test_a_step_without_any_token_logs_no_load() -> None:
    assert _load_metrics(torch.zeros(2, 4, dtype=torch.int64), True) == {}
    assert _load_metrics(torch.zeros(0, 0, dtype=torch.int64), True) == {}
