"""Whether a recipe's model can be trained here at all, asked before anything starts."""

from __future__ import annotations

import os

import torch

from r1lite.errors import R1Error
from r1lite.planner.count import parameters
from r1lite.recipe import Recipe
from r1lite.training.compute import ComputeConfig
from r1lite.training.optim import OptimConfig


def require_room(recipe: Recipe) -> None:
    """Refuse a model whose weights and optimizer exceed the memory of all ranks.

    Activations are not counted: what passes may still be too much, what does not
    pass is surely too much.

    Raises:
        R1Error: too large; says by how much and how to plan it.
    """
    config = recipe.model_config_for()
    total = sum(parameters(config).values())
    needed = total * max(_bytes(o) for o in _optimizers(recipe))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    room = _memory(recipe.compute, ranks)
    if needed > room:
        raise R1Error(
            f"model: {_count(total)} parameters need {needed / 1e9:,.0f} GB for "
            f"weights, gradients and optimizer, {ranks} process(es) here have "
            f"{room / 1e9:,.0f}; see `r1lite plan {recipe.name}` for what it takes, or "
            "train a smaller recipe"
        )


def _memory(compute: ComputeConfig, ranks: int) -> int:
    """Bytes that all ranks have: each a GPU of its own, or this machine together."""
    if compute.device != "cpu" and torch.cuda.is_available():
        return ranks * torch.cuda.get_device_properties(0).total_memory
    machines = max(1, ranks // int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks))))
    return machines * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _optimizers(recipe: Recipe) -> list[OptimConfig]:
    """Of the stages that every run has."""
    return [recipe.pretrain.optim, recipe.sft.optim, recipe.grpo.optim]


def _bytes(optim: OptimConfig) -> int:
    """A parameter's, float32 each: weight, gradient, Muon's one moment or two."""
    return 12 if optim.name == "muon" else 16


def _count(total: int) -> str:
    return f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.0f} M"
