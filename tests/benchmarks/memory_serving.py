"""Does the server's memory grow? Ten thousand requests against one process.

    python tests/benchmarks/memory_serving.py --machine "AMD EPYC, 2 cores"

Sixteen clients send chats, streams, streams broken off, and bad requests. The
resident memory is read from /proc every tenth of the way, with nothing
running. Records results/serving/memory.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.live import REPO, Live, live

OUT = REPO / "results" / "serving" / "memory.json"
CHAT, CLIENTS = "/v1/chat/completions", 16


def resident_mb(server: Live) -> float:
    """The process's resident memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def one(client: httpx.AsyncClient, number: int) -> str:
    """The request of this number; what came of it."""
    question = {"role": "user", "content": f"In order, mod 10: {number}+{number % 7}"}
    body = {"model": "nano", "messages": [question], "max_tokens": 4}
    kind = number % 4
    if kind == 0:
        return str((await client.post(CHAT, json=body)).status_code)
    if kind == 1:
        reply = await client.post(CHAT, json={**body, "stream": True, "n": 2})
        return "streamed" if "[DONE]" in reply.text else "garbled"
    if kind == 2:
        long = {**body, "stream": True, "max_tokens": 300, "ignore_eos": True}
        async with client.stream("POST", CHAT, json=long) as reply:
            async for _ in reply.aiter_bytes():
                return "left"
    return str((await client.post(CHAT, json={**body, "n": 0})).status_code)


async def batch(url: str, first: int, count: int, answers: dict[str, int]) -> None:
    """Requests first to first + count, sixteen at a time."""
    numbers = iter(range(first, first + count))

    async def worker() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for number in numbers:
                came = await one(client, number)
                answers[came] = answers.get(came, 0) + 1

    await asyncio.gather(*(worker() for _ in range(CLIENTS)))


def main(machine: str, requests: int) -> None:
    """Ten batches; memory after each."""
    answers: dict[str, int] = {}
    memory = []
    with live("--name", "nano", "--cache-mb", "16") as server:
        for i in range(10):
            asyncio.run(batch(server.url, i * requests // 10, requests // 10, answers))
            server.wait_for("vllm:num_requests_running", 0)
            server.wait_for("vllm:kv_cache_usage_perc", 0)
            memory.append(round(resident_mb(server), 1))
            print(f"{(i + 1) * requests // 10} requests: {memory[-1]} MB", flush=True)
        server.stop()
    growth = memory[-1] - memory[0]
    record = {
        "machine": machine,
        "requests": requests,
        "answers": dict(sorted(answers.items())),
        "resident_mb_after_each_tenth": memory,
        "growth_mb_after_the_first_tenth": round(growth, 1),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    chosen = parser.parse_args()
    main(chosen.machine, chosen.requests)
