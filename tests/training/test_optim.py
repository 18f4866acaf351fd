"""Optimizers and schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from r1lite.config import R1Config
from r1lite.model import R1Model
from r1lite.training import optim
from r1lite.training.optim import Muon, OptimConfig, lr_scale, orthogonalise


def test_schedule_warms_up_stays_and_decays() -> None:
    c = OptimConfig(warmup_steps=4, decay_fraction=0.5, final_lr=0.1)
    scales = [lr_scale(c, s, 20) for s in range(21)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4:11] == [1.0] * 7
    assert all(a > b for a, b in pairwise(scales[10:]))
    assert scales[15] == pytest.approx(0.55)  # half way down from 1 to 0.1
    assert scales[20] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (3, 5, 12)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_on_a_stack_equals_muon_on_each_matrix() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    stack = nn.Parameter(start.clone())
    single = [nn.Parameter(m.clone()) for m in start]
    stack.grad = gradient.clone()
    for p, g in zip(single, gradient, strict=True):
        p.grad = g.clone()
    Muon([stack], 0.1, weight_decay=0.2).step()
    Muon(single, 0.1, weight_decay=0.2).step()
    torch.testing.assert_close(stack.data, torch.stack([p.data for p in single]))
    assert not torch.allclose(stack.data, start)


def small_model() -> R1Model:
    return R1Model(
        R1Config.preset("nano").with_(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, n_routed_experts=4
        )
    )


def test_weight_decay_touches_matrices_only() -> None:
    model = small_model()
    matrices, rest = optim.split_parameters(model)
    assert all(p.ndim >= 2 for p in matrices)
    assert len(matrices) + len(rest) == len(list(model.parameters()))
    decayed = optim.build(model, OptimConfig(weight_decay=0.3))[0].param_groups
    assert [g["weight_decay"] for g in decayed] == [0.3, 0.0]
    assert any(p is model.embed_tokens.weight for p in decayed[1]["params"])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = small_model()
    optimizers = optim.build(model, OptimConfig(name="muon"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    optim.step(optimizers, math.nan)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_optimizers_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = small_model()
    optimizers = optim.build(model, OptimConfig(name=name))  # type: ignore[arg-type]
    ids = torch.randint(0, 32, (4, 16))
    losses = []
    for _ in range(30):
        logits = model(ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optim.step(optimizers, 1.0)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
