"""Thousands of requests made from the server's own OpenAPI description.

    python tests/benchmarks/fuzz_serving.py --machine "AMD EPYC, 2 cores"

A real `r1lite serve` process answers. Any 5xx, any status or body that the
description does not promise, ends the run. Records the answers by operation
and status in results/serving/fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fuzz import fuzz
from support.live import REPO, live

OUT = REPO / "results" / "serving" / "fuzz.json"


def main(machine: str, each: int) -> None:
    """Fuzz, count, store."""
    with live("--name", "nano") as server:
        began = time.monotonic()
        answers = fuzz(server.url, each, 0, "nano")
        seconds = time.monotonic() - began
        made = server.metric("vllm:generation_tokens_total")
        server.wait_for("vllm:num_requests_running", 0)
        server.wait_for("vllm:kv_cache_usage_perc", 0)
        code = server.stop()
    total = sum(answers.values())
    faults = {k: n for k, n in answers.items() if k.split()[-1] >= "500"}
    record = {
        "machine": machine,
        "requests": total,
        "answers": dict(sorted(answers.items())),
        "answers_5xx": sum(faults.values()),
        "tokens_generated": int(made),
        "pages_in_use_afterwards": 0,
        "exit_code": code,
        "seconds": round(seconds),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    assert not faults and code == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--each", type=int, default=1500)
    chosen = parser.parse_args()
    main(chosen.machine, chosen.each)
