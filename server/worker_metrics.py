"""What the workers report, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from batching.stats import BATCH_SIZE_BOUNDS, WorkerStats
from server.metric_groups import DEPLOYMENT

Row = tuple[str, str, WorkerStats, bool]
StatsSource = Callable[[], Iterable[Row]]
"""Model, version, statistics and readiness of every replica."""


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
        yield _counted("penstock_replicas", "Replicas in all", [(model, version, 1) for model, version, *_ in rows])
        ready = [(model, version, int(is_ready)) for model, version, _, is_ready in rows]
        yield _counted("penstock_replicas_ready", "Replicas that can serve", ready)
        yield _batch_sizes(rows)


def _sums(rows: list[Row], field: str) -> dict[tuple[str, str], float]:
    sums: dict[tuple[str, str], float] = {}
    for model, version, stats, _ in rows:
        sums[model, version] = sums.get((model, version), 0) + getattr(stats, field)
    return sums


def _counted(name: str, text: str, rows: Iterable[tuple[str, str, int]]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=DEPLOYMENT)
    counts: dict[tuple[str, str], int] = {}
    for model, version, count in rows:
        counts[model, version] = counts.get((model, version), 0) + count
    for labels, total in counts.items():
        gauge.add_metric(labels, total)
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
