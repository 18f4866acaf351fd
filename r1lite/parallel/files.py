"""Reading a checkpoint folder that may be damaged, foreign or hostile.

torch.distributed.checkpoint describes its files with a pickle, and a pickle can
run code. So only the dozen types of such a description are let in, and tensors
come through `torch.load(weights_only=True)`: a checkpoint holds numbers, never
code.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from r1lite.errors import R1Error

FORMAT = 1
NOTE = "r1lite.json"
_CHECKPOINT = "torch.distributed.checkpoint."
_ALLOWED = {
    f"{_CHECKPOINT}metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def write_note(folder: Path, step: int, fingerprint: str) -> None:
    """Say what this folder is, beside what torch writes."""
    note = {"format": FORMAT, "step": step, "fingerprint": fingerprint}
    (folder / NOTE).write_text(json.dumps(note))


def check_note(folder: Path, fingerprint: str) -> None:
    """Raises R1Error unless the folder is r1lite's, and of this configuration."""
    try:
        note = json.loads((folder / NOTE).read_text())
        known = note["format"] == FORMAT
        theirs = note["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise R1Error(
            f"checkpoint {folder}: {NOTE} is missing or damaged; give a directory "
            "that r1lite saved"
        ) from e
    if not known:
        raise R1Error(
            f"checkpoint {folder}: was written by another version of r1lite; "
            "delete it and run again"
        )
    if theirs != fingerprint:
        raise R1Error(
            f"checkpoint {folder}: belongs to another configuration; give another "
            "directory or delete this one"
        )


class SafeReader(FileSystemReader):
    """A FileSystemReader whose description cannot run code."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of every tensor and where its parts lie.

        Raises:
            R1Error: it is missing, damaged, or holds anything else.
        """
        try:
            found = _Unpickler((self.folder / ".metadata").read_bytes()).load()
            assert isinstance(found, Metadata)
            assert all(
                isinstance(m, TensorStorageMetadata)
                for m in found.state_dict_metadata.values()
            )
        except Exception as e:  # a damaged pickle raises almost anything
            raise R1Error(
                f"checkpoint {self.folder}: .metadata cannot be read "
                f"({reason(e)}); delete this directory, the one before is taken then"
            ) from e
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

    def sizes(self) -> dict[str, torch.Size]:
        """The whole size of every saved tensor, by name."""
        saved = self.read_metadata().state_dict_metadata
        return {
            name: m.size
            for name, m in saved.items()
            if isinstance(m, TensorStorageMetadata)
        }

    def check(self, state: dict[str, Tensor]) -> None:
        """Raises R1Error unless every tensor is here, whole and of its size."""
        saved = self.sizes()
        for name, value in state.items():
            if saved.get(name) != value.shape:
                there = tuple(saved[name]) if name in saved else "missing"
                raise R1Error(
                    f"checkpoint {self.folder}: belongs to another model, {name} is "
                    f"{there} there and {tuple(value.shape)} here; build the model it "
                    "was saved from"
                )


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)
        if dtype or name in _ALLOWED.get(module, set()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def reason(error: BaseException) -> str:
    """The last line of an error, which in a chain is its cause; 120 letters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:120] if lines else type(error).__name__
