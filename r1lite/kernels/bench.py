"""How fast the kernels are on the GPU at hand, beside what PyTorch offers.

A kernel is compared with its reference before it is timed. `r1lite bench kernels`
prints the table; its `--interpret` runs the same code without a GPU, on small sizes:
that proves that it runs, and its times mean nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.kernels.choose import chip_of, interpreted, triton
from r1lite.kernels.roofline import PEAKS, TOKENS, bound, traffic
from r1lite.kernels.work import Workload
from r1lite.kernels.workloads import workloads

# Of the largest number: what the dtype's rounding of sums comes to.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
FEW_TOKENS = 6  # for the interpreter, which takes a thousand times as long
HEADER = "| kernel | error | ms | to eager | to compile | to library | of the peak |"


@dataclass(frozen=True)
class Measured:
    """One kernel's result; times in milliseconds, None where there is no such way.

    Attributes:
        error: largest difference from the reference, as a share of its largest number.
        rival, library: the library's time and its name.
        share: the roofline's least time as a share of the kernel's.
    """

    name: str
    error: float
    kernel: float
    eager: float | None
    compiled: float | None
    rival: float | None
    library: str
    share: float | None

    @property
    def line(self) -> str:
        """A row of the table: others' times as multiples of the kernel's."""

        def times(other: float | None) -> str:
            return "-" if other is None else f"{other / self.kernel:.2f} x"

        library = times(self.rival) + (f" {self.library}" if self.library else "")
        share = "-" if self.share is None else f"{self.share:.0%}"
        cells = self.name, f"{self.error:.1e}", f"{self.kernel:.3f}", times(self.eager)
        return "| " + " | ".join((*cells, times(self.compiled), library, share)) + " |"


def measure(work: Workload, tolerance: float) -> Measured:
    """Compare a kernel with its reference, then time it and the others.

    Raises:
        R1Error: it differs by more than `tolerance`.
    """
    eager = work.runner(work.reference)
    found, wanted = work.compared(work.kernel()), work.compared(_tuple(eager()))
    error = max(_error(f, w) for f, w in zip(found, wanted, strict=True))
    if not error <= tolerance:
        raise R1Error(
            f"{work.name}: differs from its reference by {error:.1e}, allowed are "
            f"{tolerance:.0e}; set R1LITE_KERNELS=off and report it with this line"
        )
    ms = _milliseconds(work.kernel)
    on_gpu = isinstance(work.args[0], Tensor) and work.args[0].is_cuda
    backend = "inductor" if on_gpu else "aot_eager"
    compiled = torch.compile(work.reference, backend=backend)

    def compile_first() -> float:
        # A backward pass that runs again and again must not give its memory away.
        with functorch_config.patch(donated_buffer=False):
            run = work.runner(compiled)
            run()
            return _milliseconds(run)

    name, rival = work.rival or ("", None)
    return Measured(
        work.name,
        error,
        ms,
        _tried(lambda: _milliseconds(eager)),
        _tried(compile_first),
        None if rival is None else _tried(lambda: _milliseconds(rival)),
        name,
        _share(work, ms) if on_gpu else None,
    )


def bench_table(
    interpret: bool,
    only: str = "",
    tokens: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Measure every kernel whose name contains `only`.

    Args:
        interpret: on a CPU, in Triton's interpreter, nano's sizes; else V3's.
        say: called with each line of the table as soon as it is known.

    Returns:
        the table as Markdown.

    Raises:
        R1Error: no GPU, no Triton, no such kernel, or one that computes wrongly.
    """
    _refuse(interpret)
    lines = []
    for line in _lines(interpret, only, tokens):
        say(line)
        lines.append(line)
    if len(lines) == 2:
        raise R1Error(f"bench kernels: none is called {only!r}; leave --only away")
    return "\n".join(lines) + "\n"


def _lines(interpret: bool, only: str, tokens: int | None) -> Iterator[str]:
    yield HEADER
    yield "|---" * 7 + "|"
    config = R1Config.preset("nano" if interpret else "v3")
    device = "cpu" if interpret else "cuda"
    dtype = torch.float32 if interpret else torch.bfloat16
    tokens = tokens or (FEW_TOKENS if interpret else TOKENS)
    torch.manual_seed(0)
    torch._logging.set_logs(dynamo=logging.ERROR)  # a reference may break the graph
    for work in workloads(config, tokens, device, dtype):
        if only in work.name:
            torch._dynamo.reset()
            yield measure(work, TOLERANCE[dtype]).line


def _refuse(interpret: bool) -> None:
    if triton is None:
        raise R1Error("bench kernels: needs the package triton; pip install triton")
    if interpret and not interpreted():
        raise R1Error(
            "bench kernels: Triton was loaded before; set TRITON_INTERPRET=1 and start "
            "again"
        )
    if not interpret and (interpreted() or not torch.cuda.is_available()):
        raise R1Error(
            "bench kernels: needs a GPU, and TRITON_INTERPRET unset; --interpret "
            "proves on a CPU that it runs, not how fast"
        )


def _tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    largest = wanted.abs().max().clamp(min=1e-30)
    return float((found - wanted).abs().max() / largest)


def _tried(run: Callable[[], float]) -> float | None:
    """None where a way does not exist for this GPU, or does not fit its memory."""
    try:
        return run()
    except RuntimeError:  # of torch: out of memory and "not supported" are among them
        return None


def _milliseconds(run: Callable[[], Any]) -> float:
    """The median on a GPU, caches emptied between; one call in the interpreter."""
    if not interpreted():
        return float(triton.testing.do_bench(run, return_mode="median"))
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _share(work: Workload, ms: float) -> float | None:
    device = work.args[0].device
    chip = chip_of(work.args[0])
    if PEAKS[chip].name not in torch.cuda.get_device_name(device):
        return None
    least = bound(work.flops, work.unit, traffic(work), chip)
    return least.seconds * 1e3 / ms
