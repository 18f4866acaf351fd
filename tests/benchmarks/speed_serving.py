"""How fast the engine serves, beside what it replaces, on the same weights.

    python tests/benchmarks/speed_serving.py --machine "AMD EPYC, 2 cores"

Five measurements, one thread, each with all its rivals in one run:

- throughput with 1, 8 and 32 concurrent requests: `transformers` generate and
  `r1lite.generate` in batches of that size, static batching, the engine;
- random arrivals: static, dynamic and continuous batching on the same requests;
- where a step's time goes, and what the scheduler in Python costs a token;
- MTP speculation: acceptance, and what it saves;
- the prefix cache on requests that share their beginning.

Seconds are those of this process on its core (`time.process_time`), so that
other programs on the machine do not count; waiting costs nothing. Rivals run in
turn, and the median of all turns counts. Records results/serving/speed.json and
speed.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.live import FIXTURE, REPO
from support.serving import drafting_model

from r1lite.config import R1Config
from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.generation import generate, left_pad
from r1lite.hub import from_pretrained, save_pretrained
from r1lite.model import R1Model
from r1lite.serving import engine as engine_module
from r1lite.serving import runner as runner_module
from r1lite.serving.clock import Clock
from r1lite.serving.dynamic import DynamicBatcher
from r1lite.serving.engine import Engine
from r1lite.serving.replay import Answer, Arrival, replay
from r1lite.serving.types import EngineConfig, SamplingParams
from r1lite.tasks import stream

OUT = REPO / "results" / "serving"
SHARES = {f"chain/{level}": 1.0 for level in (3, 4, 5, 6)}
Work = list[tuple[list[int], int]]  # prompts and how many tokens each wants


class CoreClock(Clock):
    """This process's time on the core; waiting jumps."""

    skipped = 0.0

    def now(self) -> float:
        """Seconds."""
        return time.process_time() + self.skipped

    def wait(self, until: float) -> None:
        """Jump."""
        self.skipped += max(0.0, until - self.now())


def seconds(work: Callable[[], object]) -> float:
    """Core time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def questions(tokenizer: R1Tokenizer, count: int) -> Work:
    """Chat prompts, and answers of 8 to 64 tokens, most of them short."""
    draw, problems = random.Random(0), stream(SHARES, seed=1)
    return [
        (
            chat.prompt(tokenizer, problems.problem_at(i).question),
            min(64, 8 + int(draw.expovariate(1 / 20))),
        )
        for i in range(count)
    ]


def greedy(new: int, **fields: Any) -> SamplingParams:
    """To the last token, whatever the model says."""
    return SamplingParams(new, temperature=0, ignore_eos=True, **fields)


def batches(work: Work, size: int) -> list[Work]:
    """In order of arrival."""
    return [work[i : i + size] for i in range(0, len(work), size)]


def by_transformers(theirs: Any, work: Work, size: int) -> list[list[int]]:
    """`generate` on padded batches; a batch runs to its longest answer."""
    made = []
    for batch in batches(work, size):
        ids, mask = left_pad([p for p, _ in batch], 2)
        how = transformers.GenerationConfig(
            max_new_tokens=max(n for _, n in batch),
            do_sample=False,
            pad_token_id=2,
            eos_token_id=None,
        )
        out = theirs.generate(ids, attention_mask=mask.long(), generation_config=how)
        rows = out[:, ids.shape[1] :].tolist()
        made += [row[:n] for row, (_, n) in zip(rows, batch, strict=True)]
    return made


def by_generate(model: R1Model, work: Work, size: int) -> list[list[int]]:
    """The same with r1lite's own."""
    made = []
    for batch in batches(work, size):
        longest = max(n for _, n in batch)
        rows = generate(model, [p for p, _ in batch], longest, stop_ids=[])
        made += [row[:n] for row, (_, n) in zip(rows, batch, strict=True)]
    return made


def served(server: Engine | DynamicBatcher, work: Work) -> list[list[int]]:
    """All requests at once."""
    arrivals = [Arrival(0, p, greedy(n)) for p, n in work]
    return [a.tokens for a in replay(server, arrivals)]


def engine_of(model: R1Model, running: int, **fields: Any) -> Engine:
    """An engine with room for everybody."""
    config = {"num_pages": 1024, "prefix_cache": False, "max_events": 0, **fields}
    return Engine(model, None, EngineConfig(max_running=running, **config), CoreClock())


def same(a: Sequence[list[int]], b: Sequence[list[int]]) -> float:
    """Share of answers that are equal."""
    return round(mean(x == y for x, y in zip(a, b, strict=True)), 3)


def throughput(
    model: R1Model, theirs: Any, work: Work, size: int, turns: int
) -> dict[str, Any]:
    """Tokens per second of every rival at one concurrency."""
    made: dict[str, list[list[int]]] = {}
    rivals: dict[str, Callable[[Work], list[list[int]]]] = {
        "transformers": lambda some: by_transformers(theirs, some, size),
        "generate": lambda some: by_generate(model, some, size),
        "static": lambda some: served(
            DynamicBatcher(model, None, size, math.inf, CoreClock()), some
        ),
        "engine": lambda some: served(engine_of(model, size), some),
    }
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(turns + 1):
        for name, way in rivals.items():
            began = time.process_time()
            made[name] = way(work if turn else work[:size])
            if turn:  # the first one warms up
                times[name].append(time.process_time() - began)
    tokens = sum(n for _, n in work)
    speed = {name: round(tokens / median(t), 1) for name, t in times.items()}
    return {
        "concurrent": size,
        "requests": len(work),
        "tokens": tokens,
        "tokens_per_s": speed,
        "engine_times_transformers": round(speed["engine"] / speed["transformers"], 2),
        "answers_equal_to_transformers": same(made["engine"], made["transformers"]),
        "answers_equal_to_generate": same(made["engine"], made["generate"]),
    }


def percentiles(values: list[float]) -> list[float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return [
        round(1000 * ordered[min(last, int(p * len(ordered)))], 1) for p in (0.5, 0.99)
    ]


def arrivals(model: R1Model, work: Work, size: int, rate: float) -> dict[str, Any]:
    """Static, dynamic and continuous batching; `rate` in requests per second."""
    draw, at, coming = random.Random(0), 0.0, []
    for prompt, new in work:
        at += draw.expovariate(rate)
        coming.append(Arrival(at, prompt, greedy(new)))
    servers: dict[str, Callable[[], Engine | DynamicBatcher]] = {
        "static": lambda: DynamicBatcher(model, None, size, math.inf, CoreClock()),
        "dynamic": lambda: DynamicBatcher(model, None, size, 0.05, CoreClock()),
        "continuous": lambda: engine_of(model, size),
    }
    rows = {}
    for name, make in servers.items():
        server = make()
        replay(make(), coming[: 2 * size])  # warms up
        answers = replay(server, coming)
        rows[name] = {
            "ttft_ms": percentiles([a.ttft for a in answers]),
            "latency_ms": percentiles([a.latency for a in answers]),
            "tokens_per_s": round(
                sum(n for _, n in work) / max(a.times[-1] for a in answers), 1
            ),
            "wasted": waste(server),
        }
    return {"requests_per_s": round(rate, 1), "max_batch": size, "servers": rows}


def waste(server: Engine | DynamicBatcher) -> float:
    """Share of computed tokens that nobody wanted: padding, and ended answers.

    Rows that only fill a product up (`steady.py`) are not counted.
    """
    if isinstance(server, Engine):
        return 0.0
    return round(1 - server.wanted / server.computed, 3)


class Watch:
    """Core time spent inside named functions, own calls of others taken out."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.open: list[float] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.open.append(0.0)
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.process_time() - began
                inner = self.open.pop()
                self.spent[name] = self.spent.get(name, 0.0) + whole - inner
                if self.open:
                    self.open[-1] += whole

        return timed


def anatomy(model: R1Model, work: Work, size: int) -> dict[str, Any]:
    """Microseconds of a step and of a token, by what they go to."""
    watch, engine = Watch(), engine_of(model, size)
    served(engine, work)  # warms up
    engine, before = engine_of(model, size), model.hidden
    engine.scheduler.plan = watch.wrap("scheduler", engine.scheduler.plan)
    engine._rows = watch.wrap("bookkeeping", engine._rows)
    engine._accept = watch.wrap("bookkeeping", engine._accept)
    engine.runner._logits = watch.wrap("head", engine.runner._logits)
    engine.runner.run = watch.wrap("batch", engine.runner.run)
    engine.step = watch.wrap("bookkeeping", engine.step)
    ragged, picking = runner_module.Ragged, engine_module.pick
    model.hidden = watch.wrap("model", before)
    ragged._mix, mixing = watch.wrap("attention", ragged._mix), ragged._mix
    engine_module.pick = watch.wrap("sampling", picking)
    try:
        served(engine, work)
    finally:
        del model.hidden
        ragged._mix, engine_module.pick = mixing, picking
    steps, tokens = engine.counts.steps, engine.counts.generated_tokens
    whole = sum(watch.spent.values())
    return {
        "concurrent": size,
        "us_per_step": round(1e6 * whole / steps),
        "us_per_token": round(1e6 * whole / tokens, 1),
        "python_us_per_token": round(
            1e6 * (watch.spent["scheduler"] + watch.spent["bookkeeping"]) / tokens, 1
        ),
        "share": {k: round(v / whole, 3) for k, v in sorted(watch.spent.items())},
    }


def speculation(tokenizer: R1Tokenizer, size: int) -> dict[str, Any]:
    """The fixture with an MTP block that learnt its answers; new questions."""
    model = drafting_model()
    work = questions(tokenizer, 24)
    speed, made, steps = {}, {}, {}
    accepted = 0.0
    for drafting in (False, True) * 2:
        engine = engine_of(model, size, speculate=drafting)
        spent = seconds(lambda e=engine, d=drafting: made.update({d: served(e, work)}))
        speed.setdefault(drafting, []).append(sum(n for _, n in work) / spent)
        steps[drafting] = engine.counts.steps
        accepted = engine.stats().acceptance
    assert made[True] == made[False]
    return {
        "concurrent": size,
        "acceptance": round(accepted, 3),
        "same_tokens": made[True] == made[False],
        "steps": [steps[False], steps[True]],
        "tokens_per_s": [round(median(speed[d]), 1) for d in (False, True)],
    }


def prefix(model: R1Model, tokenizer: R1Tokenizer) -> dict[str, Any]:
    """32 questions behind one long beginning, 8 at once."""
    beginning = questions(tokenizer, 12)
    shared = [i for prompt, _ in beginning for i in prompt][:256]
    work = [(shared + prompt, 8) for prompt, _ in questions(tokenizer, 32)]
    rows = {}
    for on in (False, True):
        spent, first = [], []
        for _ in range(3):
            engine = engine_of(model, 8, prefix_cache=on)
            answers: list[Answer] = replay(
                engine, [Arrival(0, p, greedy(n)) for p, n in work]
            )
            spent.append(max(a.times[-1] for a in answers))
            first += [a.ttft for a in answers]
        stats = engine.stats()
        rows["on" if on else "off"] = {
            "seconds": round(median(spent), 3),
            "ttft_ms": percentiles(first),
            "prompt_tokens_found": round(
                stats.prefix_hits / stats.prefix_queries if on else 0.0, 3
            ),
        }
    return {"prompt_tokens": len(shared), "cache": rows}


def rival(model: R1Model) -> Any:
    """The same weights in transformers, by way of a saved directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder) / "m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "m", dtype=torch.float32
        ).eval()
    # Or it stops at the end-of-text id in spite of the settings it is called with.
    theirs.generation_config.eos_token_id = None
    return theirs


def all_throughput(nano: R1Model, tokenizer: R1Tokenizer, turns: int) -> Any:
    """Both models at three concurrencies."""
    torch.manual_seed(0)
    micro = R1Model(R1Config.preset("micro").with_(num_nextn_predict_layers=0)).eval()
    rows = []
    for name, model, counts in (
        ("nano", nano, (16, 48, 96)),
        ("micro", micro, (4, 16, 64)),
    ):
        theirs = rival(model)
        for size, count in zip((1, 8, 32), counts, strict=True):
            work = questions(tokenizer, count)
            times = turns if name == "nano" else 1
            rows.append({"model": name, **throughput(model, theirs, work, size, times)})
            print(rows[-1], flush=True)
    return rows


def all_arrivals(nano: R1Model, tokenizer: R1Tokenizer, turns: int) -> Any:
    """Three loads, as shares of what the engine can do with 8 at once."""
    work = questions(tokenizer, 96)
    spent = [
        seconds(lambda: served(engine_of(nano, 8), work)) for _ in range(turns + 1)
    ]
    able = len(work) / median(spent[1:])
    return [{"load": x, **arrivals(nano, work, 8, x * able)} for x in (0.3, 0.6, 0.9)]


def all_anatomy(nano: R1Model, tokenizer: R1Tokenizer, turns: int) -> Any:
    """A step taken apart."""
    return [anatomy(nano, questions(tokenizer, 64), size) for size in (1, 8, 32)]


PARTS: dict[str, Callable[[R1Model, R1Tokenizer, int], Any]] = {
    "throughput": all_throughput,
    "arrivals": all_arrivals,
    "anatomy": all_anatomy,
    "speculation": lambda nano, t, turns: [speculation(t, size) for size in (1, 8)],
    "prefix_cache": lambda nano, t, turns: prefix(nano, t),
}


def main(machine: str, parts: Sequence[str], turns: int) -> None:
    """Measure, store after every part, print."""
    torch.set_num_threads(1)
    tokenizer = R1Tokenizer.load(FIXTURE)
    nano = from_pretrained(FIXTURE, torch.float32).eval()
    file = OUT / "speed.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    record |= {
        "machine": machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": 1,
    }
    for part in parts:
        record[part] = PARTS[part](nano, tokenizer, turns)
        OUT.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")
    if all(part in record for part in PARTS):
        (OUT / "speed.md").write_text(report(record))
        print(report(record))


def row(*cells: object) -> str:
    """One line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*names: str) -> list[str]:
    """A table's first two lines."""
    return ["", row(*names), "|" + "---|" * len(names)]


def report(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['machine']}; one thread; torch {record['torch']}, transformers "
        f"{record['transformers']}; seconds of the process's own core time.",
        "",
        "Tokens per second, greedy, answers of 8 to 64 tokens:",
        *head("model", "concurrent", "transformers", "r1lite.generate",
              "static batching", "engine", "engine / transformers", "same answers"),
    ]  # fmt: skip
    for r in record["throughput"]:
        s = r["tokens_per_s"]
        lines.append(
            row(r["model"], r["concurrent"], s["transformers"], s["generate"],
                s["static"], s["engine"], r["engine_times_transformers"],
                r["answers_equal_to_transformers"])
        )  # fmt: skip
    lines += ["", "Random arrivals, nano, 8 at once (p50 / p99):"]
    lines += head("requests/s", "batching", "TTFT, ms", "whole answer, ms",
                  "tokens/s", "computed for nobody")  # fmt: skip
    for a in record["arrivals"]:
        for name, r in a["servers"].items():
            cells = [" / ".join(map(str, r[k])) for k in ("ttft_ms", "latency_ms")]
            rest = (r["tokens_per_s"], r["wasted"])
            lines.append(row(a["requests_per_s"], name, *cells, *rest))
    lines += ["", "Where the engine's time goes (nano, shares of a step):"]
    parts = sorted(record["anatomy"][0]["share"])
    lines += head("concurrent", "us/step", "us/token",
                  "scheduler + bookkeeping, us/token", *parts)  # fmt: skip
    for a in record["anatomy"]:
        times = [a[k] for k in ("us_per_step", "us_per_token", "python_us_per_token")]
        lines.append(row(a["concurrent"], *times, *(a["share"][p] for p in parts)))
    lines += ["", "Speculation with the MTP block (without, with):"]
    lines += head("concurrent", "acceptance", "steps", "tokens/s", "same tokens")
    for s in record["speculation"]:
        pairs = [" / ".join(map(str, s[k])) for k in ("steps", "tokens_per_s")]
        lines.append(row(s["concurrent"], s["acceptance"], *pairs, s["same_tokens"]))
    p = record["prefix_cache"]
    lines += ["", f"32 prompts with {p['prompt_tokens']} tokens in common, 8 at once:"]
    lines += head("prefix cache", "seconds", "TTFT, ms", "prompt tokens found")
    for on, r in p["cache"].items():
        ttft = " / ".join(map(str, r["ttft_ms"]))
        lines.append(row(on, r["seconds"], ttft, r["prompt_tokens_found"]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    main(chosen.machine, chosen.parts, chosen.turns)
