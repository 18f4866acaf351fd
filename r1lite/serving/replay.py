"""The same arrivals for every server, and what each client saw of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1lite.serving.dynamic import DynamicBatcher
from r1lite.serving.engine import Engine
from r1lite.serving.types import SamplingParams


@dataclass(frozen=True)
class Arrival:
    """A request that comes `at` seconds after the beginning; its n is 1."""

    at: float
    prompt: Sequence[int]
    params: SamplingParams


@dataclass
class Answer:
    """What a client got: tokens, and when each of them came.

    arrived, times: seconds after the beginning.
    """

    arrived: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.arrived

    @property
    def latency(self) -> float:
        """Seconds to the last token."""
        return self.times[-1] - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens (ITL); 0 for those that came together."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def replay(
    server: Engine | DynamicBatcher, arrivals: Sequence[Arrival]
) -> list[Answer]:
    """Serve `arrivals`, each at its moment of the server's clock, to the last.

    Request i has the id str(i) in the server's events. Returns the answers in
    the order of `arrivals`.
    """
    clock, began = server.clock, server.clock.now()
    answers = [Answer(a.at) for a in arrivals]
    left = deque(sorted(range(len(arrivals)), key=lambda i: arrivals[i].at))
    while left or server.has_work:
        while left and began + arrivals[left[0]].at <= clock.now():
            i = left.popleft()
            server.add_request(arrivals[i].prompt, arrivals[i].params, str(i))
        if not left and isinstance(server, DynamicBatcher):
            server.close()
        following = began + arrivals[left[0]].at if left else math.inf
        if _due(server) > clock.now():
            clock.wait(min(_due(server), following))
            continue
        for name, delta in server.step():
            answer = answers[int(name)]
            answer.tokens += delta.token_ids
            answer.times += [clock.now() - began] * len(delta.token_ids)
            answer.text += delta.text
    return answers


def _due(server: Engine | DynamicBatcher) -> float:
    """When the server has something to do."""
    if isinstance(server, DynamicBatcher):
        return server.due
    return -math.inf if server.has_work else math.inf
