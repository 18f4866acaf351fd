"""Reading the weight files of a model directory, checked tensor by tensor."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from r1lite.errors import R1Error
from r1lite.hub import layout
from r1lite.model import R1Model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BIAS = "e_score_correction_bias"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file's object, or an R1Error that names the file."""
    try:
        values = json.loads(file.read_text())
    except OSError as error:
        raise R1Error(
            f"{file}: cannot be read; a model directory holds config.json"
        ) from error
    except ValueError as error:
        raise R1Error(f"{file}: not JSON ({error}); save the model again") from error
    if not isinstance(values, dict):
        raise R1Error(f"{file}: not an object of names and values; save it again")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory; pickles are refused."""
    if (folder / INDEX).exists():
        files = set(read_json(folder / INDEX).get("weight_map", {}).values())
        if not files:
            raise R1Error(f"{folder / INDEX}: names no files; save the model again")
        if any(Path(file).name != file for file in files):
            raise R1Error(
                f"{folder / INDEX}: names files outside its directory; copy them "
                "in and name them plainly"
            )
        return [folder / file for file in sorted(files)]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise R1Error(
            f"{folder}: holds pickled weights, which can run code when read; "
            "convert them to safetensors"
        )
    raise R1Error(f"{folder}: no {SINGLE} and no index; copy the weights there")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise R1Error(
            f"{file}: cannot be read as safetensors ({error}); copy the file again"
        ) from error


def names_in(file: Path) -> list[str]:
    """The tensors' names, read from the file's header alone."""
    with _open(file) as tensors:
        return list(tensors.keys())


class _Slots:
    """Memory for R1Model's tensors, filled whole or expert by expert."""

    def __init__(self, model: R1Model, dtype: torch.dtype, device: Any) -> None:
        self.config, self.dtype, self.device = model.config, dtype, device
        self.want = model.state_dict()
        self.state: dict[str, Tensor] = {}
        self.filled: Counter[str] = Counter()
        self.names: set[str] = set()

    def part(self, name: str) -> tuple[str, Tensor | None]:
        """Our tensor's name and the piece of it that file name `name` fills."""
        one = layout.ONE_EXPERT.fullmatch(name)
        if one is None:
            ours = layout.our_name(name, self.config)
            return ours, self._slot(ours)
        stem, expert, kind = one.groups()
        leaf = "down_proj" if kind == "down" else "gate_up_proj"
        ours = layout.our_name(f"{stem}.{leaf}", self.config)
        stack = self._slot(ours)
        if stack is None or int(expert) >= len(stack):
            return ours, None
        matrix = stack[int(expert)]
        if kind == "down":
            return ours, matrix
        return ours, matrix.chunk(2)[0 if kind == "gate" else 1]

    def _slot(self, ours: str) -> Tensor | None:
        if ours not in self.want:
            return None
        if ours not in self.state:
            dtype = torch.float32 if ours.endswith(BIAS) else self.dtype
            shape = self.want[ours].shape
            self.state[ours] = torch.empty(shape, dtype=dtype, device=self.device)
        return self.state[ours]

    def fill(self, name: str, tensor: Tensor, file: Path) -> None:
        """Copy one tensor of the file to its place."""
        if name in self.names:  # else it would make up for one that is missing
            raise R1Error(
                f"{file}: {name} is given twice; copy all files of the model again"
            )
        self.names.add(name)
        ours, target = self.part(name)
        if target is None:
            raise R1Error(
                f"{file}: holds {name}, which this config has no place for; "
                "check config.json"
            )
        if target.shape != tensor.shape:
            raise R1Error(
                f"{file}: {name} has shape {tuple(tensor.shape)}, config.json says "
                f"{tuple(target.shape)}; the two do not belong together"
            )
        target.copy_(tensor)
        self.filled[ours] += tensor.numel()

    def finish(self, folder: Path) -> dict[str, Tensor]:
        """The whole state, or an error that names what the files lack."""
        tied = self.config.tie_word_embeddings
        for name, like in self.want.items():
            if name == "lm_head.weight" and tied:
                self.state[name] = self.state["embed_tokens.weight"]
            elif name.endswith(BIAS) and layout.family(self.config) == "deepseek_v2":
                self.state[name] = torch.zeros(like.shape, device=self.device)
            elif self.filled[name] != like.numel():
                lack = layout.hf_name(name, self.config)
                raise R1Error(
                    f"{folder}: the weights of {lack} are missing, incomplete or "
                    "given twice; copy all files of the model again"
                )
        return self.state


def read_state(
    files: list[Path], model: R1Model, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """All tensors under our names, experts stacked, checked against `model`.

    Args:
        model: may be on the meta device; only names and shapes are used.
    """
    slots = _Slots(model, dtype, device)
    for file in files:
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if layout.is_copy(name, model.config):
                    continue
                tensor = tensors.get_tensor(name)
                if tensor.numel():  # a shared expert of width zero is no tensor here
                    slots.fill(name, tensor, file)
    return slots.finish(files[0].parent)
