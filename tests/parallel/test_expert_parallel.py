"""Parallel training in real processes equals one process: loss by loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.launch import torchrun
from parallel.workers import CLIP, ROWS, SEQ, STEPS, config, train

LAYOUTS = {2: ["ep2", "ep1", "ep2-fsdp"], 4: ["ep4", "ep2", "ep2-fsdp:10"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What one process finds in so many steps."""

    @functools.cache
    def found(steps: int) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("alone") / "one.pt"
        train(out, steps=steps)
        return torch.load(out, weights_only=True)

    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each layout found: ep1 on two ranks is dp2, ep2 on four dp2 x ep2."""
    out = tmp_path_factory.mktemp("together")
    for ranks, layouts in LAYOUTS.items():
        (out / str(ranks)).mkdir()
        torchrun("workers.py", ranks, out / str(ranks), *layouts)
    return out


@pytest.mark.parametrize(
    ("ranks", "layout"), [(r, name) for r, names in LAYOUTS.items() for name in names]
)
def test_equals_one_process(
    ranks: int,
    layout: str,
    alone: Callable[[int], dict[str, Any]],
    together: Path,
) -> None:
    """Loss by loss, gradient by gradient, token by token."""
    name, _, steps = layout.partition(":")
    many = torch.load(together / str(ranks) / f"{name}.pt", weights_only=True)
    one = alone(int(steps or STEPS))
    assert len(many["losses"]) == int(steps or STEPS)
    assert one["losses"][0] - one["losses"][-4:].max() > 0.1  # it does learn
    assert (
        0 < int((one["norms"] > CLIP).sum()) < len(one["norms"])
    )  # some steps were clipped
    torch.testing.assert_close(many["losses"], one["losses"], atol=1e-5, rtol=0)
    torch.testing.assert_close(many["norms"], one["norms"], atol=1e-4, rtol=1e-4)
    assert torch.equal(many["load"], one["load"])  # no token lost, none doubled
    picks = ROWS * config().num_experts_per_tok
    assert many["load"].sum(1).tolist() == [picks * n for n in (SEQ, SEQ, SEQ - 1)]
    assert (many["sent"] > 0) == (name != "ep1")
    share = ranks if "fsdp" in name else 1
    assert many["held"] == pytest.approx(one["held"] / share, rel=0.05)
    for kind, atol in (("gradients", 1e-6), ("state", 1e-4)):
        assert many[kind].keys() == one[kind].keys()
        for name, value in one[kind].items():
            found = many[kind][name]
            torch.testing.assert_close(
                found, value, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_awkward_batches_and_their_gradients() -> None:
    """Uneven ranks, ranks and experts without tokens, experts not sharded."""
    assert "6 cases agree" in torchrun("edge_workers.py", 2)


def test_fsdp_with_tied_ends_and_named_calls() -> None:
    """Each tensor once, whichever way the trunk is called first."""
    assert "4 cases agree" in torchrun("fsdp_workers.py", 2)
