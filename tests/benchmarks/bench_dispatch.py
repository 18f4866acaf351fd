"""Which way of running the experts is fastest: grouped, looped or dense?

    python tests/benchmarks/bench_dispatch.py --machine "AMD EPYC, 2 cores"

Writes results/dispatch.json beside itself: median milliseconds of one MoE
dispatch, forward alone and forward with backward. Processor time of one
thread, which other programs hardly disturb; the candidates take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.config import R1Config
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.experts import Experts, grouped, looped
from r1lite.moe.gating import Router, Routing

HERE = Path(__file__).parent
TOKENS = (1, 8, 64, 512, 4096)
Way = Callable[[Tensor, Routing, Experts], Tensor]


def sorted_by(run: Callable[..., Tensor]) -> Way:
    """The package's dispatch around one way of running sorted rows."""

    def way(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
        def stand_in(rows: Tensor, counts: Tensor) -> Tensor:
            return run(rows, experts.gate_up_proj, experts.down_proj, counts)

        return dispatch_local(x, routing, stand_in)  # type: ignore[arg-type]

    return way


def dense(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Every expert on every token, the unchosen ones times zero."""
    n = experts.down_proj.shape[0]
    both = F.linear(x, experts.gate_up_proj.flatten(0, 1)).unflatten(-1, (n, -1))
    gate, up = both.chunk(2, dim=-1)
    weights = torch.zeros(len(x), n).scatter(1, routing.experts, routing.weights)
    inner = F.silu(gate) * up * weights.unsqueeze(-1)
    return inner.flatten(1) @ experts.down_proj.transpose(1, 2).flatten(0, 1)


WAYS: dict[str, Way] = {
    "grouped": sorted_by(grouped),
    "looped": sorted_by(looped),
    "dense": dense,
}


def milliseconds(tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median time of each way, the ways interleaved."""
    config = R1Config.preset("nano")
    experts, router = Experts(config), Router(config)
    x = torch.randn(tokens, config.hidden_size, requires_grad=True)
    with torch.no_grad():
        routing = router(x)
    expected = WAYS["looped"](x, routing, experts)
    spent: dict[str, dict[str, list[float]]] = {}
    for turn in range(repeats + 2):
        for name, way in WAYS.items():
            torch.testing.assert_close(way(x, routing, experts), expected)
            start = time.process_time()
            with torch.no_grad():
                way(x, routing, experts)
            middle = time.process_time()
            way(x, routing, experts).square().sum().backward()
            end = time.process_time()
            if turn >= 2:  # the first two warm up
                lists = spent.setdefault(name, {"forward": [], "with_backward": []})
                lists["forward"].append((middle - start) * 1e3)
                lists["with_backward"].append((end - middle) * 1e3)
    return {
        name: {kind: round(statistics.median(ts), 3) for kind, ts in lists.items()}
        for name, lists in spent.items()
    }


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    nano = R1Config.preset("nano")
    result: dict[str, object] = {
        "machine": arguments.machine,
        "torch": torch.__version__,
        "shape": f"hidden {nano.hidden_size}, inner {nano.moe_intermediate_size}, "
        f"{nano.n_routed_experts} experts, top {nano.num_experts_per_tok}, float32",
        "unit": "milliseconds of processor time, one thread, median",
    }
    torch.set_num_threads(1)
    for tokens in TOKENS:
        found = milliseconds(tokens, arguments.repeats)
        result[f"{tokens} tokens"] = found
        print(tokens, found)
    target = HERE / "results" / "dispatch.json"
    target.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
