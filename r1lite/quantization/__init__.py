"""Quantization: fewer bits per weight, for all weights, experts included.

Chapter 12 builds it. `quantize_` changes a model in place and reports what it
covered; `save_pretrained` and `from_pretrained` know such models.
"""

from r1lite.quantization.apply import Report, quantize_
from r1lite.quantization.schemes import Scheme, scheme_of

__all__ = ["Report", "Scheme", "quantize_", "scheme_of"]
