"""Hugging Face directories, both ways.

What is saved here loads in transformers with equal logits; what transformers
or DeepSeek saved loads here. The MTP block is stored as one layer more than
the model has, as in the release: transformers lists it as unexpected and
goes on without it.
"""

from r1lite.hub.load import from_pretrained
from r1lite.hub.save import save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
