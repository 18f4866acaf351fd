"""From a directory to a quantised directory: what `r1lite quantize` does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.hub import from_pretrained, save_pretrained
from r1lite.hub.files import read_json
from r1lite.quantization.apply import KEEP, Schemes, quantize_
from r1lite.quantization.calibrate import calibrate
from r1lite.quantization.report import Report
from r1lite.quantization.rounding import CALIBRATED, require_method

SEQ_LEN, ROWS = 128, 256  # what calibration reads at most: 32,768 tokens
WORDS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def quantise_directory(
    source: str | PathLike[str],
    target: str | PathLike[str],
    scheme: Schemes,
    method: str = "rtn",
    texts: Sequence[str | PathLike[str]] = (),
    keep: tuple[str, ...] = KEEP,
) -> Report:
    """Quantise a saved model into a new directory, with its tokenizer.

    `target` appears when it is complete, or not at all.

    Args:
        texts: files that gptq and awq calibrate on, such as the model will read.
        keep: see `quantize_`.

    Raises:
        R1Error: `source` is no float model's directory, `target` holds something,
            no text to calibrate on, or what `quantize_` refuses.
    """
    old, new = Path(source), Path(target)
    _check(old, new)
    require_method(method)
    found = None
    model = from_pretrained(old)
    if method in CALIBRATED:
        if not texts:
            raise R1Error(
                f"--text: {method} needs to see what the model will read; give a "
                "file of text, or use rtn or hqq"
            )
        found = calibrate(model, text_rows(R1Tokenizer.load(old), texts))
    report = quantize_(model, scheme, method=method, calibration=found, keep=keep)
    save_pretrained(model, new, _Words(old))
    return report


def text_rows(
    tokenizer: R1Tokenizer, files: Sequence[str | PathLike[str]]
) -> list[Tensor]:
    """Batches of up to 8 rows of 128 token ids, cut from the files' text.

    Raises:
        R1Error: a file cannot be read, or all of them hold less than one row.
    """
    ids: list[int] = []
    for file in files:
        try:
            ids += [tokenizer.bos_id, *tokenizer.encode(Path(file).read_text())]
        except (OSError, UnicodeError) as error:
            raise R1Error(
                f"{file}: cannot be read as text ({error}); give another --text"
            ) from error
    count = min(ROWS, len(ids) // SEQ_LEN)
    if not count:
        raise R1Error(
            f"--text: holds {len(ids)} tokens, calibration takes at least {SEQ_LEN}; "
            "give more text"
        )
    return list(torch.tensor(ids[: count * SEQ_LEN]).view(count, SEQ_LEN).split(8))


class _Words:
    """The tokenizer's files, as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, path: Path) -> None:
        """Copy them."""
        for name in WORDS:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, path / name)


def _check(old: Path, new: Path) -> None:
    if not old.is_dir():
        raise R1Error(f"{old}: no such directory; give one that holds config.json")
    if read_json(old / "config.json").get("quantization_config"):
        raise R1Error(f"{old}: is quantised already; give the float model's directory")
    if new.is_file() or (new.is_dir() and any(new.iterdir())):
        raise R1Error(f"{new}: exists already; choose a new place for --out")
