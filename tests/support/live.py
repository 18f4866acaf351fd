"""`r1lite serve` as a process of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

REPO = Path(__file__).parents[2]
FIXTURE = REPO / "chapters" / "fixtures" / "nano" / "grpo"


@dataclass
class Live:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    output: Path  # what it prints

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        values = [x.rpartition(" ")[2] for x in lines if re.match(rf"{name}[{{ ]", x)]
        assert values, name
        return sum(map(float, values))

    def wait_for(self, name: str, value: float, seconds: float = 20) -> None:
        """Until a metric has a value."""
        end = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < end, (name, self.metric(name))
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def command(*options: str, directory: Path = FIXTURE) -> list[str]:
    """The command line of a server."""
    return [sys.executable, "-m", "r1lite", "serve", str(directory), *options]


def environment() -> dict[str, str]:
    """One thread, asleep when it waits: others may run beside it."""
    plain = {k: v for k, v in os.environ.items() if k != "R1LITE_API_KEY"}
    calm = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**plain, **calm, "PYTHONPATH": str(REPO), "NO_COLOR": "1"}


@contextmanager
def live(*options: str, port: int = 0, directory: Path = FIXTURE) -> Iterator[Live]:
    """Start a server, wait until it is ready, and see that it ends."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        arguments = command("--port", str(port), *options, directory=directory)
        with output.open("w") as file:
            process = subprocess.Popen(
                arguments,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
                text=True,
            )
        try:
            yield Live(process, _ready(process, output), output)
        finally:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[str], output: Path) -> str:
    """The address, once the server answers there."""
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"on (http://\S+)", output.read_text())
        if found:
            try:
                if httpx.get(f"{found[1]}/ready", timeout=30).status_code == 200:
                    return found[1]
            except httpx.TransportError:
                pass  # it prints its address just before it listens
        time.sleep(0.05)
    raise AssertionError(f"no server: {output.read_text()}")
