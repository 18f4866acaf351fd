"""Reading a Hugging Face directory, or a hub id, into an R1Model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch

import r1lite
from r1lite.errors import R1Error
from r1lite.hub import layout
from r1lite.hub.files import names_in, read_json, read_state, weight_files
from r1lite.model import R1Model
from r1lite.moe.balance import routers


def from_pretrained(
    path: str | PathLike[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> R1Model:
    """Load a model, in evaluation mode, without touching the random generator.

    Args:
        path: a directory, or a hub id such as "org/name".
        dtype: of the weights; default what config.json says.

    Raises:
        R1Error: something is missing, foreign or of the wrong shape.
    """
    folder = _resolve(path)
    file = folder / "config.json"
    values = read_json(file)
    if reader := _reader(values):
        return reader(folder, dtype, device)
    config, stored = layout.config_from_hf(values, str(file))
    files = weight_files(folder)
    names = [name for file in files for name in names_in(file)]
    if not any(name.startswith(layout.mtp_prefix(config)) for name in names):
        config = config.with_(num_nextn_predict_layers=0)
    with torch.device("meta"):
        model = R1Model(config)
    state = read_state(files, model, dtype or stored, device)
    model.load_state_dict(state, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    for router in routers(model):
        router.counts = torch.zeros_like(router.counts, device=device)
    return model.eval()


def _reader(values: dict[str, Any]) -> Callable[..., R1Model] | None:
    """What a later chapter offers for weights that are quantised this way."""
    how = values.get("quantization_config")
    kind = how.get("quant_method") if isinstance(how, dict) else None
    home = r1lite._READERS.get(str(kind))
    return None if home is None else import_module(home).load_quantised


def _resolve(path: str | PathLike[str]) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    looks_local = folder.is_absolute() or folder.parent.is_dir()
    if looks_local or str(path).count("/") != 1:
        raise R1Error(f"{path}: no such directory; give one that holds config.json")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.jinja"]
        return Path(snapshot_download(str(path), allow_patterns=wanted))
    except Exception as error:  # the client raises a dozen kinds
        reason = str(error).splitlines()[0]
        raise R1Error(
            f"{path}: neither a directory nor reachable on the hub ({reason}); "
            "check the name and the network"
        ) from error
