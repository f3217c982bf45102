"""What a scrape reads: the gateway's own counts, and the workers' summed over replicas."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from batching.buckets import Cells
from batching.stats import WorkerStats
from engines.types import Usage
from server.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _of(model: str, version: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"model": model, "version": version, **labels}.items()))


def test_replicas_of_a_deployment_are_summed() -> None:
    first, second, other = WorkerStats(running=2, waiting=1), WorkerStats(running=3), WorkerStats(running=7)
    metrics = Metrics()

    def source() -> Iterator[tuple[str, str, WorkerStats, bool]]:
        yield from (("m", "1", first, True), ("m", "1", second, False), ("m", "2", other, True))

    metrics.watch_workers(source)
    samples = _samples(metrics)
    assert samples["penstock_requests_running", _of("m", "1")] == 5
    assert samples["penstock_requests_running", _of("m", "2")] == 7
    assert samples["penstock_requests_waiting", _of("m", "1")] == 1
    assert samples["penstock_replicas_ready", _of("m", "1")] == 1
    first.running = 0
    assert _samples(metrics)["penstock_requests_running", _of("m", "1")] == 3, "read when somebody scrapes"


def test_batch_sizes_are_a_cumulative_histogram() -> None:
    stats = WorkerStats()
    for size in (1, 2, 2, 300):
        stats.observe_step(size, Cells(size, 1))
    metrics = Metrics()
    metrics.watch_workers(lambda: [("m", "1", stats, True), ("m", "1", stats, True)])
    samples = _samples(metrics)
    assert [samples["penstock_batch_size_bucket", _of("m", "1", le=le)] for le in ("1", "2", "256", "+Inf")] == [
        2,
        6,
        6,
        8,
    ]
    assert samples["penstock_batch_size_sum", _of("m", "1")] == 610
    assert samples["penstock_padding_cells_total", _of("m", "1")] == 8


def test_usage_and_losses() -> None:
    metrics = Metrics()
    metrics.observe_usage("m", "1", Usage(10, 4, 3))
    lost = 0
    metrics.count_lost_usage(lambda: lost)
    assert metrics.of("m", "1") is metrics.of("m", "1")
    assert metrics.of("m", "1") is not metrics.of("m", "2")
    samples = _samples(metrics)
    assert samples["penstock_tokens_total", _of("m", "1", kind="prompt")] == 10
    assert samples["penstock_tokens_total", _of("m", "1", kind="cached")] == 4
    assert samples["penstock_tokens_total", _of("m", "1", kind="completion")] == 3
    lost = 5
    assert _samples(metrics)["penstock_usage_rows_lost", ()] == 5


def test_two_gateways_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.restarts.labels("m", "1").inc()
    assert ("penstock_worker_restarts_total", _of("m", "1")) in _samples(one)
    assert ("penstock_worker_restarts_total", _of("m", "1")) not in _samples(other)
