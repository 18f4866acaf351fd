"""Writing a Hugging Face directory: config.json, safetensors, tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.hub import layout
from r1lite.hub.files import INDEX, SINGLE
from r1lite.model import R1Model


class Saves(Protocol):
    """A tokenizer, as far as this file needs one."""

    def save(self, path: Path) -> Any:
        """Write the tokenizer's files into the directory."""


def save_pretrained(
    model: R1Model,
    path: str | PathLike[str],
    tokenizer: Saves | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write config.json, the weights and, if given, the tokenizer's files.

    Everything is written beside `path` first and moved in when complete: a
    new directory appears at once, files of an old one are replaced singly.

    Args:
        max_shard_size: bytes of a weight file; more than one adds an index.

    Raises:
        R1Error: the place cannot be written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as made:
            fresh = Path(made) / "files"
            fresh.mkdir()
            _write(model, fresh, max_shard_size)
            if tokenizer is not None:
                tokenizer.save(fresh)
            _move(fresh, target)
    except (OSError, SafetensorError) as error:
        raise R1Error(
            f"{target}: could not be saved ({error}); free some space or choose "
            "another place"
        ) from error


def _write(model: R1Model, folder: Path, limit: int) -> None:
    dtype = model.embed_tokens.weight.dtype
    config = layout.config_to_hf(model.config, dtype)
    tensors = layout.export(model.state_dict(), model.config)
    if quantised := getattr(model, "quantised", None):  # a later chapter's layout
        config["quantization_config"] = quantised.config(model)
        tensors = quantised.tensors(model)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # vLLM and SGLang look here for the ids that end an answer.
    ends = {k: v for k, v in config.items() if k.endswith("_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    shards = _shards(tensors, limit)
    names = [f"model-{i + 1:05}-of-{len(shards):05}" for i in range(len(shards))]
    files = [SINGLE] if len(shards) == 1 else [n + ".safetensors" for n in names]
    for file, shard in zip(files, shards, strict=True):
        # clone: safetensors refuses tensors that share one storage
        whole = {k: v.detach().cpu().clone().contiguous() for k, v in shard.items()}
        save_file(whole, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        size = sum(t.nbytes for shard in shards for t in shard.values())
        where = {k: f for f, shard in zip(files, shards, strict=True) for k in shard}
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    tensors: Iterator[tuple[str, Tensor]], limit: int
) -> list[dict[str, Tensor]]:
    """Fill files in order up to `limit` bytes; a bigger tensor gets its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _move(fresh: Path, target: Path) -> None:
    if not target.exists():
        os.replace(fresh, target)
        return
    new = {p.name for p in fresh.iterdir()}
    # Weights before the index that names them, and an old index before its
    # weights, so that no index ever points at a file that is not there.
    for file in sorted(fresh.iterdir(), key=lambda p: p.suffix == ".json"):
        os.replace(file, target / file.name)
    for old in [target / INDEX, *target.glob("model*.safetensors")]:
        if old.name not in new:
            old.unlink(missing_ok=True)
