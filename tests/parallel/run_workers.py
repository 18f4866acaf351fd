"""`r1lite run` under torchrun. With R1_KILL=n rank 1 dies in its n-th update, once."""

from __future__ import annotations

import os
import signal

from r1lite.cli import app
from r1lite.training import optim


def die_in_update(number: int) -> None:
    """Gradients are summed, rank 0 goes on to its optimizer: the worst moment."""
    step, calls = optim.step, 0

    def deadly(*given: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*given, **named)  # type: ignore[arg-type]

    optim.step = deadly  # type: ignore[assignment]


if __name__ == "__main__":
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if "R1_KILL" in os.environ and first_life and os.environ["RANK"] == "1":
        die_in_update(int(os.environ["R1_KILL"]))
    app()
