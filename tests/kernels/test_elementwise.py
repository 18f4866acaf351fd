"""RMSNorm and SwiGLU in the interpreter equal their references, gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import compare
from torch import Tensor

from r1lite.kernels.norm import _rms_norm, rms_norm, rms_norm_reference
from r1lite.kernels.swiglu import _swiglu, swiglu, swiglu_reference

pytestmark = pytest.mark.usefixtures("kernels_on")
ROWS = st.integers(0, 35)
WIDTH = st.integers(1, 70)
TOL = {torch.float32: 1e-5, torch.float16: 2e-2}
DTYPE = st.sampled_from(list(TOL))


def _exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@settings(max_examples=25)
@given(ROWS, WIDTH, DTYPE)
def test_rms_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, width, dtype=dtype), torch.rand(width, dtype=dtype)
    compare(lambda x, w: rms_norm(x, w, 1e-6), _exact_norm, [x, weight], TOL[dtype])


def test_rms_norm_of_rows_that_lie_apart() -> None:
    """A slice of a wider tensor, as the latent beside the rotated key."""
    wide = torch.randn(2, 5, 48)
    x, weight = wide[..., :20], torch.rand(20)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6)
    )


@settings(max_examples=25)
@given(ROWS, WIDTH, DTYPE)
def test_swiglu(rows: int, width: int, dtype: torch.dtype) -> None:
    gate, up = (torch.randn(rows, width, dtype=dtype) * 3 for _ in range(2))
    compare(swiglu, swiglu_reference, [gate, up], TOL[dtype])


def test_swiglu_of_the_halves_of_one_product() -> None:
    both = torch.randn(3, 4, 26)
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(swiglu(gate, up), swiglu_reference(gate, up))


def test_large_gates_do_not_overflow() -> None:
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]])
    found = swiglu(gate, torch.ones_like(gate))
    torch.testing.assert_close(found, swiglu_reference(gate, torch.ones_like(gate)))


def test_the_ops_are_well_formed() -> None:
    """Fake implementations and gradients as torch.compile and FSDP need them."""
    x = torch.randn(3, 20, requires_grad=True)
    weight = torch.rand(20, requires_grad=True)
    torch.library.opcheck(_rms_norm, (x, weight, 1e-6))
    torch.library.opcheck(_swiglu, (x, torch.randn(3, 20, requires_grad=True)))


def test_the_backward_pass_gives_the_same_bits_twice() -> None:
    grads = []
    for _ in range(2):
        torch.manual_seed(1)
        x, w = torch.randn(33, 24), torch.rand(24).requires_grad_()
        rms_norm(x, w, 1e-6).square().sum().backward()
        grads.append(w.grad)
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]
