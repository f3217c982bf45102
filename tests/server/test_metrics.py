"""What a scrape reads: the gateway's own counts, and the workers' summed over replicas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from batching.buckets import Cells
from batching.stats import WorkerStats
from engines.types import Usage
from quota.ledger import QuotaDecision, Refusal, Remaining
from quota.levels import Dimension, Level
from server.metrics import Metrics
from server.model_state import Standing


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return _parsed(metrics.render().decode())


def _parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _of(model: str, version: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"model": model, "version": version, **labels}.items()))


def test_replicas_of_a_deployment_are_summed() -> None:
    first, second = WorkerStats(running=2, waiting=1, restarts=1), WorkerStats(running=3, restarts=2)
    other = WorkerStats(running=7)
    metrics = Metrics()

    def source() -> Iterator[tuple[str, str, WorkerStats, bool]]:
        yield from (("m", "1", first, True), ("m", "1", second, False), ("m", "2", other, True))

    metrics.watch_workers(source)
    samples = _samples(metrics)
    assert samples["penstock_requests_running", _of("m", "1")] == 5
    assert samples["penstock_requests_running", _of("m", "2")] == 7
    assert samples["penstock_requests_waiting", _of("m", "1")] == 1
    assert samples["penstock_replicas_ready", _of("m", "1")] == 1
    assert samples["penstock_worker_restarts_total", _of("m", "1")] == 3
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
    assert metrics.of("m", "1") is metrics.of("m", "1")
    assert metrics.of("m", "1") is not metrics.of("m", "2")
    samples = _samples(metrics)
    assert samples["penstock_tokens_total", _of("m", "1", kind="prompt")] == 10
    assert samples["penstock_tokens_total", _of("m", "1", kind="cached")] == 4
    assert samples["penstock_tokens_total", _of("m", "1", kind="completion")] == 3
    assert samples["penstock_usage_rows_lost", ()] == 0
    metrics.lost_usage.inc()
    assert _samples(metrics)["penstock_usage_rows_lost", ()] == 1


def test_decisions_of_quotas() -> None:
    metrics, nothing = Metrics(), Remaining()
    near = ((Level.KEY, Dimension.RPM), (Level.ACCOUNT, Dimension.TPM))
    passed = Refusal(Level.FEATURE, "tools", Dimension.RPM, 5, None)
    metrics.quota.observe(QuotaDecision("1", True, nothing))
    metrics.quota.observe(QuotaDecision("2", True, nothing, near=near, shadowed=(passed,)))
    metrics.quota.observe(QuotaDecision("3", True, nothing, near=near[:1]))
    metrics.quota.observe(QuotaDecision("4", False, nothing, refusal=Refusal(Level.ACCOUNT, "", Dimension.TPM, 9, 1)))
    samples = _samples(metrics)
    quota = {name: n for name, n in samples.items() if "quota" in name[0] and "_total" in name[0]}
    counted = {(name, *(value for _, value in labels)): n for (name, labels), n in quota.items()}
    assert counted == {
        ("penstock_quota_near_limit_total", "rpm", "key"): 2,
        ("penstock_quota_near_limit_total", "tpm", "account"): 1,
        ("penstock_quota_shadow_refusals_total", "rpm", "feature"): 1,
        ("penstock_quota_refusals_total", "tpm", "account"): 1,
    }


def test_two_gateways_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.observe_usage("m", "1", Usage(10, 4, 3))
    assert ("penstock_tokens_total", _of("m", "1", kind="prompt")) in _samples(one)
    assert ("penstock_tokens_total", _of("m", "1", kind="prompt")) not in _samples(other)


GATEWAY = """
import sys
from pathlib import Path
from batching.stats import WorkerStats
from engines.types import Usage
from server.metrics import Metrics, share_counts
from server.model_state import Standing

folder, number = Path(sys.argv[1]), int(sys.argv[2])
share_counts(folder, number)
metrics = Metrics(folder)
metrics.watch_workers(lambda: [("m", "1", WorkerStats(running=2, restarts=1), True)])
metrics.observe_usage("m", "1", Usage(10, 4, 3))
metrics.of("m", "1").queue.observe(0.2)
metrics.lost_usage.inc()
metrics.health.ledger_up.set(number)
metrics.health.observe(3, [("m", "1", number)])
sys.stdout.buffer.write(metrics.render())
"""


def test_gateways_that_share_their_counts(tmp_path: Path) -> None:
    """One that is started again goes on where it was; what the workers report is counted once."""
    for number in (0, 1, 0):
        command = [sys.executable, "-c", GATEWAY, str(tmp_path), str(number)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples = _parsed(text)
    assert samples["penstock_tokens_total", _of("m", "1", kind="prompt")] == 30
    assert samples["penstock_queue_seconds_count", _of("m", "1")] == 3
    assert samples["penstock_queue_seconds_bucket", _of("m", "1", le="0.25")] == 3
    assert samples["penstock_usage_rows_lost", ()] == 3
    assert samples["penstock_quota_ledger_up", ()] == 0, "not for all of them"
    assert samples["penstock_connections", ()] == 6
    assert samples["penstock_replicas_set_aside", _of("m", "1")] == 1, "by one of them"
    assert samples["penstock_requests_running", _of("m", "1")] == 2
    assert samples["penstock_worker_restarts_total", _of("m", "1")] == 1
    assert {path.name.rsplit("_", 1)[1] for path in tmp_path.iterdir()} == {"0.db", "1.db"}


def test_how_models_stand() -> None:
    metrics = Metrics()
    metrics.watch_models(lambda: [("m", "1", Standing.READY), ("m", "2", Standing.UNLOADED)])
    samples = _samples(metrics)
    for state in Standing:
        assert samples["penstock_model_state", _of("m", "1", state=state)] == (state is Standing.READY)
        assert samples["penstock_model_state", _of("m", "2", state=state)] == (state is Standing.UNLOADED)
