"""R1-lite: a DeepSeek-R1-style reasoning model, whole, on two CPU cores."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Looked up on first use, so that `import r1lite` costs nothing and a chapter
# that needs only the configuration never loads torch.
_HOME = {
    "R1Config": "r1lite.config",
    "R1Error": "r1lite.errors",
    "R1Model": "r1lite.model",
    "from_pretrained": "r1lite.hub",
    "save_pretrained": "r1lite.hub",
    "generate": "r1lite.generation",
}

# What computes hot operations on a GPU (r1lite.hot); loaded on first use as well.
_FASTER = "r1lite.kernels.model.compute"
# Which module reads a directory that is quantised: its config.json's quant_method.
# `from_pretrained` looks here, so that chapter 4 need not know chapter 12.
_READERS = {"r1lite": "r1lite.quantization.load", "fp8": "r1lite.quantization.load"}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'r1lite' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
