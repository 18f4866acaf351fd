"""RoPE and the fused head in the interpreter equal their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1lite.attention.rope import rotate
from r1lite.errors import R1Error
from r1lite.kernels import logprobs
from r1lite.kernels.logprobs import (
    _token_logprobs,
    token_logprobs,
    token_logprobs_reference,
)
from r1lite.kernels.rope import _rope, rope

pytestmark = pytest.mark.usefixtures("kernels_on")


@settings(max_examples=20)
@given(
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(1, 20),
    st.integers(0, 9),
    st.integers(1, 3),
)
def test_rope(
    interleave: bool, batch_of_angles: int, half: int, seq: int, heads: int
) -> None:
    wide = torch.randn(3, seq, heads, 2 * half + 3)
    angle = torch.randn(batch_of_angles, seq, half)
    mine = wide.clone().requires_grad_()
    theirs = wide.double().requires_grad_()
    found = rope(mine[..., 3:], angle.cos(), angle.sin(), interleave)
    cos, sin = (f(angle.double()).unsqueeze(-2) for f in (torch.cos, torch.sin))
    wanted = rotate(theirs[..., 3:], cos, sin, interleave)
    direction = torch.randn_like(wanted)
    found.backward(direction.float())
    wanted.backward(direction)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)


def run(
    kernel: bool, h: Tensor, w: Tensor, targets: Tensor, up: Tensor, t: float
) -> list[Tensor]:
    h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
    compute = token_logprobs if kernel else token_logprobs_reference
    found = compute(h, w, targets, t)
    found.backward(up.to(found.dtype))
    assert h.grad is not None
    assert w.grad is not None
    return [found.detach(), h.grad, w.grad]


@settings(max_examples=20)
@given(
    st.integers(0, 20),
    st.integers(1, 200),
    st.floats(0.3, 3.0),
    st.sampled_from([torch.float32, torch.float16]),
)
def test_token_logprobs(rows: int, vocab: int, t: float, dtype: torch.dtype) -> None:
    h, w = torch.randn(rows, 16, dtype=dtype), torch.randn(vocab, 16, dtype=dtype)
    targets, up = torch.randint(vocab, (rows,)), torch.randn(rows)
    found = run(True, h, w, targets, up, t)
    wanted = run(False, h.float(), w.float(), targets, up, t)
    tol = 5e-5 if dtype == torch.float32 else 6e-2
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.float(), theirs, atol=tol, rtol=tol)


def test_slices_of_rows_and_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "NUMBERS", 300)
    monkeypatch.setattr(logprobs, "BLOCK", 32)
    h, w = torch.randn(11, 8), torch.randn(100, 8) * 3
    targets, up = torch.randint(100, (11,)), torch.randn(11)
    for mine, theirs in zip(
        run(True, h, w, targets, up, 1.0), run(False, h, w, targets, up, 1.0),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=5e-5)


def test_a_token_outside_the_vocabulary_has_no_probability() -> None:
    h, w = torch.randn(4, 8), torch.randn(12, 8)
    found = token_logprobs(h, w, torch.tensor([3, -1, 12, 11]))
    assert found.isnan().tolist() == [False, True, True, False]


def test_a_first_block_that_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 32)
    h, w, targets = torch.ones(2, 1), torch.randn(100, 1), torch.tensor([50, 3])
    w[:40] = float("-inf")
    wanted = token_logprobs_reference(h, w, targets)
    torch.testing.assert_close(token_logprobs(h, w, targets), wanted)


def test_the_ops_are_well_formed() -> None:
    h, w = torch.randn(5, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    torch.library.opcheck(_token_logprobs, (h, w, torch.randint(12, (5,)), 0.7))
    x, angle = torch.randn(4, 2, 8, requires_grad=True), torch.randn(4, 4)
    torch.library.opcheck(_rope, (x, angle.cos(), angle.sin(), True, False))


def test_what_does_not_fit() -> None:
    h, w, t = torch.randn(5, 8), torch.randn(12, 9), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(R1Error, match=r"token_logprobs: hidden \(5, 8\)"):
        token_logprobs(h, w, t)
    with pytest.raises(R1Error, match="temperature: 0"):
        token_logprobs(h, w[:, :8], t, 0.0)


def test_the_choice_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1LITE_KERNELS", "fast")
    with pytest.raises(R1Error, match="R1LITE_KERNELS: 'fast' is unknown"):
        rope(torch.randn(1, 1, 1, 2), torch.ones(1, 1, 1), torch.ones(1, 1, 1), True)
    monkeypatch.setenv("R1LITE_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(R1Error, match="needs the package triton and a GPU"):
        rope(torch.randn(1, 1, 1, 2), torch.ones(1, 1, 1), torch.ones(1, 1, 1), True)
