"""Prometheus metrics under vLLM's names, so that its dashboards work here."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Count
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from r1lite.serving.types import Delta, Stats

# Seconds. Finer at the bottom than vLLM's: these models are small.
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5,
         5, 7.5, 10, 20, 40, 80)  # fmt: skip
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
           0.3, 0.4, 0.5, 0.75, 1, 2.5)  # fmt: skip
WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60,
         120, 240, 480)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


class Metrics:
    """One registry a server. `measure` follows a request to its end."""

    def __init__(self, model_name: str, stats: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(model_name, stats))
        self._name = model_name
        self.first = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token.", FIRST
        )
        self.between = self._histogram(
            "inter_token_latency_seconds", "Between tokens of a sample.", BETWEEN
        )
        self.whole = self._histogram(
            "e2e_request_latency_seconds", "Arrival to last token.", WHOLE
        )
        self.queue = self._histogram(
            "request_queue_time_seconds", "Arrival to first computed.", FIRST
        )
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "First computed to first token.", FIRST
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "First token to last token.", WHOLE
        )
        self.longest = self._histogram(
            "request_max_num_generation_tokens", "Most tokens of a sample.", TOKENS
        )
        self.prompt = self._histogram(
            "request_prompt_tokens", "Tokens of a prompt.", TOKENS
        )
        self.generated = self._histogram(
            "request_generation_tokens", "Tokens made for a request.", TOKENS
        )
        self.http = Count(
            "http_requests",
            "Answers by path and status.",
            ("handler", "method", "status"),
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(
            f"vllm:{name}",
            text,
            ("model_name",),
            buckets=buckets,
            registry=self.registry,
        )
        return made.labels(self._name)

    def measure(self, prompt_tokens: int) -> RequestTimer:
        """Start the clocks of a request that has just arrived."""
        return RequestTimer(self, prompt_tokens)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class RequestTimer:
    """The clocks of one request; `index` separates its samples."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics, self._began = metrics, time.perf_counter()
        self._last: dict[int, float] = {}
        self._first, self._queued = 0.0, math.inf
        self._prompt, self._made = prompt_tokens, Counter[int]()

    def saw(self, delta: Delta) -> None:
        """Count one delta; tokens of one step came at the same time."""
        if delta.usage is not None:
            self._queued = min(self._queued, delta.usage.queue_seconds)
        if not delta.token_ids:
            return
        now = time.perf_counter()
        if not self._last:
            self._first = now
            self._metrics.first.observe(now - self._began)
        if delta.index in self._last:
            each = (now - self._last[delta.index]) / len(delta.token_ids)
            for _ in delta.token_ids:
                self._metrics.between.observe(each)
        self._last[delta.index] = now
        self._made[delta.index] += len(delta.token_ids)

    def done(self) -> None:
        """The request ended, in whatever way.

        How its time was spent is known of one that came to its end.
        """
        self._metrics.whole.observe(time.perf_counter() - self._began)
        if self._last and self._queued < math.inf:
            self._metrics.queue.observe(self._queued)
            wait = self._first - self._began - self._queued
            self._metrics.prefill.observe(max(0.0, wait))
            self._metrics.decode.observe(max(self._last.values()) - self._first)
        self._metrics.prompt.observe(self._prompt)
        self._metrics.generated.observe(self._made.total())
        self._metrics.longest.observe(max(self._made.values(), default=0))


class _EngineCollector(Collector):
    """The engine's own numbers, read when somebody asks."""

    def __init__(self, model_name: str, stats: Callable[[], Stats]) -> None:
        self._labels, self._stats = [model_name], stats

    def collect(self) -> Iterator[Metric]:
        s = self._stats()
        usage = s.pages_used / s.pages_total if s.pages_total else 0.0
        for name, text, value in (
            ("num_requests_running", "Samples in the batch.", s.running),
            ("num_requests_waiting", "Requests in the queue.", s.waiting),
            ("kv_cache_usage_perc", "Pages in use, 0 to 1.", usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens computed.", s.prompt_tokens),
            ("generation_tokens", "Tokens made.", s.generated_tokens),
            ("num_preemptions", "Samples sent back to wait.", s.preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", s.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found.", s.prefix_hits),
            ("spec_decode_num_draft_tokens", "Tokens drafted.", s.drafted),
            ("spec_decode_num_accepted_tokens", "Drafts accepted.", s.accepted),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            counter.add_metric(self._labels, value)
            yield counter
        ended = CounterMetricFamily(
            "vllm:request_success",
            "Samples that ended, by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason, count in s.finished.items():
            ended.add_metric([*self._labels, reason], count)
        yield ended
