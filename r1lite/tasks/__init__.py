"""Tasks whose answers a program can verify (chapter 8).

The reward of R1-Zero is a rule, not a model (DeepSeek-R1, arXiv 2501.12948,
section 2.2.2): is the answer right, and is it written in the asked form?
"""

from r1lite.tasks.families import FAMILIES, check, corrupt, split_of
from r1lite.tasks.problem import SPLITS, Family, Problem
from r1lite.tasks.stream import Stream, problems, stream

__all__ = [
    "FAMILIES",
    "SPLITS",
    "Family",
    "Problem",
    "Stream",
    "check",
    "corrupt",
    "problems",
    "split_of",
    "stream",
]
