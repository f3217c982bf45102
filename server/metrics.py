"""Prometheus metrics. Labels are bounded sets: deployments, endpoints, outcomes, levels; never accounts or keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from batching.stats import BATCH_SIZE_BOUNDS, WorkerStats
from engines.types import Usage
from quota.admission import NEAR_PERCENT
from quota.ledger import QuotaDecision
from server.model_metrics import ModelCollector, StandingSource

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DEPLOYMENT = ("model", "version")

StatsSource = Callable[[], Iterable[tuple[str, str, WorkerStats, bool]]]
"""Model, version, statistics and readiness of every replica."""


@dataclass(slots=True, frozen=True)
class DeploymentTimes:
    """One deployment's histograms: looking them up by label is too slow to do at every token."""

    queue: Histogram
    first_token: Histogram
    inter_token: Histogram
    request: Histogram


def share_counts(folder: Path, gateway: int) -> None:
    """From now on, what this process counts lies in files of this folder, which `Metrics(folder)` reads with those of
    the other gateways. A gateway that is started again under the same number counts on in its predecessor's files.

    Before any metric is made. https://prometheus.github.io/client_python/multiprocess/
    """
    folder.mkdir(exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: gateway)  # type: ignore[no-untyped-call]


class Metrics:
    """One registry a gateway, so that tests and several apps in one process don't meet in a global.

    With `shared`, a folder of `share_counts`, it shows what all of them have counted.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self._shown = CollectorRegistry() if shared else self.registry
        if shared:
            MultiProcessCollector(self._shown, str(shared))  # type: ignore[no-untyped-call]
        self._times: dict[tuple[str, str], DeploymentTimes] = {}
        self.requests = self._counter("penstock_requests", "Finished requests", *DEPLOYMENT, "endpoint", "outcome")
        self.tokens = self._counter("penstock_tokens", "Tokens of finished requests", *DEPLOYMENT, "kind")
        self.refusals = self._counter("penstock_quota_refusals", "Requests that a quota refused", "level", "dimension")
        self.near_limits = self._counter(
            "penstock_quota_near_limit",
            f"Admissions that left a limit at {NEAR_PERCENT} % or more",
            "level",
            "dimension",
        )
        self.shadow_refusals = self._counter(
            "penstock_quota_shadow_refusals", "Admissions that went past a shadow limit", "level", "dimension"
        )
        self.failovers = self._counter(
            "penstock_failovers", "Answers whose engine failed, by what became of them", *DEPLOYMENT, "outcome"
        )
        self.ejections = self._counter(
            "penstock_ejections", "Replicas that were set aside for a time, by why", *DEPLOYMENT, "reason"
        )
        self.cache_requests = self._counter(
            "penstock_cache_requests", "Requests by what the response cache had of them", *DEPLOYMENT, "result"
        )
        self.cache_evictions = self._counter(
            "penstock_cache_evictions", "Answers that the embedded response cache dropped for want of room"
        )
        self.cache_bytes = Gauge(
            "penstock_cache_bytes",
            "What the embedded response caches hold",
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self.pii_masked = self._counter("penstock_pii_masked", "Personal data that no model was shown", "kind")
        self.lost_usage = Gauge(
            "penstock_usage_rows_lost",
            "Usage rows that could not be stored",
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self.ledger_up = Gauge(
            "penstock_quota_ledger_up",
            "Whether the ledger of quotas answers every gateway: 1 or 0",
            registry=self.registry,
            multiprocess_mode="min",
        )
        self.queue_time = self._histogram("penstock_queue_seconds", "Arrival to first step", LATENCY_BUCKETS)
        self.first_token = self._histogram(
            "penstock_time_to_first_token_seconds", "Arrival to first token", LATENCY_BUCKETS
        )
        self.inter_token = self._histogram(
            "penstock_inter_token_seconds", "Gap between deltas of one request", TOKEN_BUCKETS
        )
        self.request_time = self._histogram(
            "penstock_request_seconds", "Arrival to the end of the answer", LATENCY_BUCKETS
        )

    def watch_workers(self, source: StatsSource) -> None:
        """Not summed over gateways: every one hears all that the workers report."""
        self._shown.register(WorkerCollector(source))

    def watch_models(self, source: StandingSource) -> None:
        """Not summed either: every gateway knows how all models stand."""
        self._shown.register(ModelCollector(source))

    def of(self, model: str, version: str) -> DeploymentTimes:
        """Deployments are few and never forgotten."""
        if (times := self._times.get((model, version))) is None:
            families = (self.queue_time, self.first_token, self.inter_token, self.request_time)
            times = DeploymentTimes(*(family.labels(model, version) for family in families))
            self._times[model, version] = times
        return times

    def observe_usage(self, model: str, version: str, usage: Usage, *, is_replayed: bool = False) -> None:
        """`is_replayed`: by the response cache; nothing was computed."""
        if is_replayed:
            self.tokens.labels(model, version, "replayed").inc(usage.total_tokens)
            return
        self.tokens.labels(model, version, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(model, version, "cached").inc(usage.cached_tokens)
        self.tokens.labels(model, version, "completion").inc(usage.completion_tokens)

    def observe_masked(self, counts: Mapping[str, int]) -> None:
        """Personal data of one request, by its kind."""
        for kind, count in counts.items():
            self.pii_masked.labels(kind).inc(count)

    def observe_decision(self, decision: QuotaDecision) -> None:
        if decision.refusal is not None:
            self.refusals.labels(decision.refusal.level, decision.refusal.dimension).inc()
        for level, dimension in decision.near:
            self.near_limits.labels(level, dimension).inc()
        for passed in decision.shadowed:
            self.shadow_refusals.labels(passed.level, passed.dimension).inc()

    def observe_ejection(self, model: str, version: str, reason: str) -> None:
        self.ejections.labels(model, version, reason).inc()

    def render(self) -> bytes:
        return generate_latest(self._shown)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, DEPLOYMENT, buckets=buckets, registry=self.registry)


GAUGES = {
    "running": ("penstock_requests_running", "Requests that the engine is working on"),
    "waiting": ("penstock_requests_waiting", "Requests in the admission queue"),
    "kv_blocks_used": ("penstock_kv_blocks_used", "KV blocks held by sequences"),
    "kv_blocks": ("penstock_kv_blocks", "KV blocks in all"),
}
COUNTERS = {
    "steps": ("penstock_engine_steps", "Steps"),
    "prefill_tokens": ("penstock_engine_prefill_tokens", "Prompt tokens computed"),
    "cached_tokens": ("penstock_engine_cached_tokens", "Prompt tokens found in the prefix cache"),
    "generated_tokens": ("penstock_engine_generated_tokens", "Tokens sampled"),
    "attention_cells": ("penstock_attention_cells", "Query-key pairs asked for"),
    "padding_cells": ("penstock_padding_cells", "Query-key pairs that padding to a length bucket added"),
    "ungrouped_padding_cells": (
        "penstock_ungrouped_padding_cells",
        "Query-key pairs that padding would have added without length buckets",
    ),
    "preemptions": ("penstock_preemptions", "Sequences that lost their KV space and were computed again"),
    "out_of_memory": (
        "penstock_engine_out_of_memory",
        "Steps that found too little memory",
    ),
    "step_seconds": ("penstock_engine_step_seconds", "Time that the engine worked on steps"),
    "restarts": ("penstock_worker_restarts", "Workers started again"),
}


class WorkerCollector(Collector):
    """Reads the workers' latest reports when somebody scrapes; replicas of one deployment are summed."""

    def __init__(self, source: StatsSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        rows = list(self._source())
        for field, (name, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=DEPLOYMENT)
            for labels, value in _sums(rows, field).items():
                gauge.add_metric(labels, value)
            yield gauge
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=DEPLOYMENT)
            for labels, value in _sums(rows, field).items():
                counter.add_metric(labels, value)
            yield counter
        yield _ready(rows)
        yield _batch_sizes(rows)


Row = tuple[str, str, WorkerStats, bool]


def _sums(rows: list[Row], field: str) -> dict[tuple[str, str], float]:
    sums: dict[tuple[str, str], float] = {}
    for model, version, stats, _ in rows:
        sums[model, version] = sums.get((model, version), 0) + getattr(stats, field)
    return sums


def _ready(rows: list[Row]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily("penstock_replicas_ready", "Replicas that can serve", labels=DEPLOYMENT)
    counts: dict[tuple[str, str], int] = {}
    for model, version, _, ready in rows:
        counts[model, version] = counts.get((model, version), 0) + ready
    for labels, count in counts.items():
        gauge.add_metric(labels, count)
    return gauge


def _batch_sizes(rows: list[Row]) -> HistogramMetricFamily:
    family = HistogramMetricFamily("penstock_batch_size", "Sequences in a step", labels=DEPLOYMENT)
    by_deployment: dict[tuple[str, str], list[WorkerStats]] = {}
    for model, version, stats, _ in rows:
        by_deployment.setdefault((model, version), []).append(stats)
    for labels, all_stats in by_deployment.items():
        counts = [sum(column) for column in zip(*(s.batch_size_buckets for s in all_stats), strict=True)]
        bounds = [*map(str, BATCH_SIZE_BOUNDS), "+Inf"]
        cumulative = [(bound, float(sum(counts[: i + 1]))) for i, bound in enumerate(bounds)]
        family.add_metric(labels, cumulative, float(sum(s.batch_size_sum for s in all_stats)))
    return family
