"""What the kernel tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compute, in the interpreter (tests/conftest.py)."""
    monkeypatch.setenv("R1LITE_KERNELS", "triton")
