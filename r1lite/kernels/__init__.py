"""Triton kernels, each beside the PyTorch reference it has to equal.

Every file holds one operation: the maths, the reference, the kernels, and the
`torch.library` op with its gradient. Which one computes is decided in `choose`.
"""
