"""The server at 1, 2 and 10 times what it can do, over loopback.

    python tests/benchmarks/load_serving.py --machine "AMD EPYC, 2 cores"

Capacity is measured first: requests per second with as many clients as the
engine runs samples. Then requests arrive at random (Poisson) at 1, 2 and 10
times that rate, whether or not earlier ones are answered. Every question has
its own seed and a known answer, made alone before the load: an answer that
differs counts as garbled, one that neither came nor was refused as lost.
Records results/serving/load.json and load.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.live import REPO, Live, live

OUT = REPO / "results" / "serving"
CHAT = "/v1/chat/completions"
RUNNING, WAITING, TOKENS, KINDS = 8, 32, 32, 16


@dataclass
class Seen:
    """What one load did."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # s to the first token
    between: list[float] = field(default_factory=list)  # s between tokens
    longest_queue: float = 0


def body(kind: int) -> dict[str, Any]:
    """One of sixteen requests, each with its seed."""
    turn = {"role": "user", "content": f"In order, mod 10: {kind}+3*{kind % 5}-1"}
    how = {"temperature": 1.0, "seed": kind, "max_tokens": TOKENS, "ignore_eos": True}
    return {"model": "nano", "messages": [turn], "stream": True, **how}


async def ask(client: httpx.AsyncClient, kind: int, seen: Seen | None) -> str:
    """The whole streamed text; "" if refused with 429."""
    began = last = time.perf_counter()
    text, first, done = "", True, False
    async with client.stream("POST", CHAT, json=body(kind)) as reply:
        if reply.status_code == 429:
            assert "retry-after" in reply.headers
            return ""
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            done = done or line == "data: [DONE]"
            if not line.startswith("data: {"):
                continue
            delta = json.loads(line[6:])["choices"][0]["delta"]
            piece = (delta.get("reasoning") or "") + (delta.get("content") or "")
            if piece and seen:
                now = time.perf_counter()
                (seen.first if first else seen.between).append(
                    now - (began if first else last)
                )
                first, last = False, now
            text += piece
    if not done:
        raise httpx.RemoteProtocolError("no [DONE]")
    return text


async def capacity(client: httpx.AsyncClient, requests: int) -> float:
    """Answers per second with RUNNING clients that wait for theirs."""
    left = iter(range(requests))

    async def worker() -> None:
        for i in left:
            await ask(client, i % KINDS, None)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(RUNNING)))
    return requests / (time.perf_counter() - began)


async def load(
    client: httpx.AsyncClient, rate: float, seconds: float, right: list[str]
) -> Seen:
    """Requests at `rate` per second for some seconds."""
    seen, draw = Seen(), random.Random(0)

    async def one(kind: int) -> None:
        try:
            text = await ask(client, kind, seen)
        except httpx.HTTPError:
            seen.counts["lost"] += 1
            return
        what = "refused" if not text else "right" if text == right[kind] else "garbled"
        seen.counts[what] += 1

    async def watch() -> None:
        while True:
            text = (await client.get("/metrics")).text
            line = next(
                x
                for x in text.splitlines()
                if x.startswith("vllm:num_requests_waiting{")
            )
            seen.longest_queue = max(seen.longest_queue, float(line.split()[-1]))
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    tasks, end = [], time.perf_counter() + seconds
    at = time.perf_counter()
    while at < end:
        at += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(draw.randrange(KINDS))))
    await asyncio.gather(*tasks)
    watching.cancel()
    seen.counts["sent"] = len(tasks)
    return seen


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


async def measure(server: Live, seconds: float) -> dict[str, Any]:
    """Capacity, then the three loads."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=300, limits=limits
    ) as client:
        right = [await ask(client, kind, None) for kind in range(KINDS)]
        able = await capacity(client, 64)
        rows = []
        for times in (1, 2, 10):
            seen = await load(client, times * able, seconds, right)
            rows.append(
                {
                    "times": times,
                    **{k: seen.counts[k] for k in ("sent", "right", "refused")},
                    **{k: seen.counts[k] for k in ("garbled", "lost")},
                    "longest_queue": int(seen.longest_queue),
                    "ttft_ms": [percentile(seen.first, p) for p in (0.5, 0.99)],
                    "itl_ms": [percentile(seen.between, p) for p in (0.5, 0.99)],
                }
            )
            print(rows[-1], flush=True)
    return {"requests_per_second": round(able, 2), "loads": rows}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['machine']}; {RUNNING} samples at once, queue of {WAITING}, "
        f"answers of {TOKENS} tokens; capacity "
        f"{record['requests_per_second']} requests/s. TTFT and ITL: p50 / p99.",
        "",
        "| load | sent | right | refused (429) | garbled | lost | longest queue | "
        "TTFT, ms | ITL, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["loads"]:
        cells = [f"{r['times']}x", r["sent"], r["right"], r["refused"], r["garbled"]]
        cells += [r["lost"], r["longest_queue"]]
        cells += [" / ".join(map(str, r[k])) for k in ("ttft_ms", "itl_ms")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(machine: str, seconds: float) -> None:
    """Measure and store."""
    options = ("--max-running", str(RUNNING), "--max-waiting", str(WAITING))
    with live("--name", "nano", *options) as server:
        record = {"machine": machine, **asyncio.run(measure(server, seconds))}
        server.wait_for("vllm:kv_cache_usage_perc", 0)
        assert server.stop() == 0
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "load.json").write_text(json.dumps(record, indent=1) + "\n")
    (OUT / "load.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    chosen = parser.parse_args()
    main(chosen.machine, chosen.seconds)
