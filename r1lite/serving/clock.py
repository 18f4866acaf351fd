"""What time it is: on the wall, or in a simulation whose steps have a price."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def ran(self, tokens: int) -> None:
        """A step has computed so many tokens. On the wall its time has passed."""

    def wait(self, until: float) -> None:
        """Let the time pass up to a moment."""
        time.sleep(max(0.0, until - self.now()))


class SimulatedClock(Clock):
    """Time passes by steps alone, each as long as `seconds` says of its tokens.

    The model still runs, so the tokens are real; only their times are made up.
    A schedule comes out the same on every machine, and can be that of another
    one: `lambda tokens: 0.02 + 0.0001 * tokens` is a step that reads all weights
    in 20 ms and computes a token in 0.1 ms.
    """

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.time = seconds, 0.0

    def now(self) -> float:
        """Seconds since the simulation began."""
        return self.time

    def ran(self, tokens: int) -> None:
        """A step has computed so many tokens."""
        self.time += self.seconds(tokens)

    def wait(self, until: float) -> None:
        """Jump to a moment."""
        self.time = max(self.time, until)
