"""Prometheus metrics. Labels are bounded sets: deployments, endpoints, outcomes, levels; never accounts or keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from engines.types import Usage
from server.metric_groups import (
    DEPLOYMENT,
    CacheMetrics,
    DeploymentTimes,
    HealthMetrics,
    Latencies,
    QuotaCounters,
    counter,
    gauge,
)
from server.model_metrics import ModelCollector, StandingSource
from server.worker_metrics import StatsSource, WorkerCollector


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
        self.latencies = Latencies(self.registry)
        self.quota = QuotaCounters(self.registry)
        self.cache = CacheMetrics(self.registry)
        self.health = HealthMetrics(self.registry)
        count = partial(counter, self.registry)
        self.requests = count("penstock_requests", "Finished requests", *DEPLOYMENT, "endpoint", "outcome")
        self.refused = count("penstock_requests_refused", "Requests that were not admitted", "status", "code")
        self.tokens = count("penstock_tokens", "Tokens of finished requests", *DEPLOYMENT, "kind")
        self.pii_masked = count("penstock_pii_masked", "Personal data that no model was shown", "kind")
        self.lost_usage = gauge(self.registry, "penstock_usage_rows_lost", "Usage rows that could not be stored")

    def watch_workers(self, source: StatsSource) -> None:
        """Not summed over gateways: every one hears all that the workers report."""
        self._shown.register(WorkerCollector(source))

    def watch_models(self, source: StandingSource) -> None:
        """Not summed either: every gateway knows how all models stand."""
        self._shown.register(ModelCollector(source))

    def of(self, model: str, version: str) -> DeploymentTimes:
        return self.latencies.of(model, version)

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

    def observe_refused(self, status: int, code: str) -> None:
        self.refused.labels(str(status), code).inc()

    def render(self) -> bytes:
        return generate_latest(self._shown)
