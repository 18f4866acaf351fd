"""Which rounding: to nearest, or one that knows more (GPTQ, AWQ, HQQ)."""

from __future__ import annotations

from torch import Tensor

from r1lite.errors import R1Error
from r1lite.quantization.awq import awq
from r1lite.quantization.calibrate import Calibration
from r1lite.quantization.coding import Codes, encode
from r1lite.quantization.gptq import gptq
from r1lite.quantization.hqq import hqq
from r1lite.quantization.schemes import Scheme

METHODS = ("rtn", "gptq", "awq", "hqq")
CALIBRATED = ("gptq", "awq")  # those that need to see activations


def require_method(name: str) -> None:
    """Raises R1Error if no method has this name."""
    if name not in METHODS:
        raise R1Error(f"method: {name!r} is unknown; choose {', '.join(METHODS)}")


def rounded(
    w: Tensor,
    scheme: Scheme,
    parts: int,
    name: str,
    method: str,
    calibration: Calibration | None,
) -> tuple[Codes, Tensor | None, str]:
    """Codes of a weight (..., out, in), its input scale if any, a note.

    A weight that calibration never saw is rounded to nearest, and the note
    says so.

    Raises:
        R1Error: the scheme does not suit the method, or the calibration is
            another model's.
    """
    if method == "hqq":
        return hqq(w, scheme), None, ""
    if method == "rtn" or calibration is None:
        return encode(w, scheme, parts, name), None, ""
    hessian = calibration.hessians.get(name)
    if hessian is None:
        codes = encode(w, scheme, parts, name)
        return codes, None, "not seen in calibration: rounded to nearest"
    if hessian.shape != (*w.shape[:-2], w.shape[-1], w.shape[-1]):
        raise R1Error(
            f"calibration: {name} had inputs {tuple(hessian.shape)}; calibrate this "
            "very model"
        )
    lent = calibration.lent.get(name.rpartition(".")[0], [])
    note = f"few tokens, saw all of the layer's: experts {lent}" if lent else ""
    if method == "gptq":
        return gptq(w, hessian, scheme), None, note
    return *awq(w, hessian, scheme, parts), note
