"""The first line of every chapter: the same numbers on every run."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from typing import Any

import numpy as np
import torch

FIGURE_INCHES = (7.0, 3.2)


def setup_chapter(seed: int = 0) -> None:
    """Make a notebook repeatable and quiet. Call it in the first code cell.

    It seeds Python, NumPy and PyTorch; asks PyTorch for deterministic
    algorithms on the CPU with one thread (sums in another order differ in the
    last digit); fixes how numbers print and how large figures are; silences
    warnings and progress bars, because stored outputs are compared on every
    test run.

    Args:
        seed: the number all three generators start from.
    """
    _seed(seed)
    _fix_torch()
    _fix_printing()
    _fix_figures()
    _be_quiet()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _fix_torch() -> None:
    # cuBLAS is deterministic only with a fixed workspace, named before first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_device("cpu")
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def _fix_printing() -> None:
    torch.set_printoptions(precision=4, sci_mode=False, linewidth=79)
    np.set_printoptions(precision=4, suppress=True, linewidth=79)


def _fix_figures() -> None:
    # Imported here: it takes longer to load than the rest together.
    import matplotlib

    ipython: Any = sys.modules.get("IPython")  # a script has none
    shell = ipython and ipython.get_ipython()
    if hasattr(shell, "kernel"):
        # Pictures go into the page even if MPLBACKEND asks for something else,
        # and plt.show() closes the figure, so that the next cell starts afresh.
        shell.run_line_magic("matplotlib", "inline")
    matplotlib.rcParams.update(
        {
            "figure.figsize": FIGURE_INCHES,
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "font.size": 10,
            "svg.hashsalt": "r1lite",
        }
    )


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # torchao, where installed, logs on import
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # a chapter never needs the network
