"""Metrics that are counted together, each group in the registry of one gateway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quota.admission import NEAR_PERCENT
from quota.ledger import QuotaDecision

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DEPLOYMENT = ("model", "version")


def counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=registry)


def gauge(
    registry: CollectorRegistry, name: str, text: str, *labels: str, over: Literal["sum", "min", "max"] = "sum"
) -> Gauge:
    """`over`: what is shown of several gateways' values."""
    return Gauge(name, text, labels, registry=registry, multiprocess_mode=over)


class QuotaCounters:
    def __init__(self, registry: CollectorRegistry) -> None:
        count = partial(counter, registry)
        limit = ("level", "dimension")
        near = f"Admissions that left a limit at {NEAR_PERCENT} % or more"
        self.refusals = count("penstock_quota_refusals", "Requests that a quota refused", *limit)
        self.near_limits = count("penstock_quota_near_limit", near, *limit)
        self.shadow_refusals = count(
            "penstock_quota_shadow_refusals", "Admissions that went past a shadow limit", *limit
        )

    def observe(self, decision: QuotaDecision) -> None:
        if decision.refusal is not None:
            self.refusals.labels(decision.refusal.level, decision.refusal.dimension).inc()
        for level, dimension in decision.near:
            self.near_limits.labels(level, dimension).inc()
        for passed in decision.shadowed:
            self.shadow_refusals.labels(passed.level, passed.dimension).inc()


class CacheMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        count = partial(counter, registry)
        dropped = "Answers that the embedded response cache dropped for want of room"
        self.requests = count(
            "penstock_cache_requests", "Requests by what the response cache had of them", *DEPLOYMENT, "result"
        )
        self.evictions = count("penstock_cache_evictions", dropped)
        self.bytes = gauge(registry, "penstock_cache_bytes", "What the embedded response caches hold")


class HealthMetrics:
    """Of what requests depend on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        count = partial(counter, registry)
        failed = "Answers whose engine failed, by what became of them"
        self.failovers = count("penstock_failovers", failed, *DEPLOYMENT, "outcome")
        set_aside = "Replicas that were set aside for a time, by why"
        self.ejections = count("penstock_ejections", set_aside, *DEPLOYMENT, "reason")
        breakers = "Replicas that are set aside, as the gateway has it that set most aside"
        self.set_aside = gauge(registry, "penstock_replicas_set_aside", breakers, *DEPLOYMENT, over="max")
        answers = "Whether the ledger of quotas answers every gateway: 1 or 0"
        self.ledger_up = gauge(registry, "penstock_quota_ledger_up", answers, over="min")
        self.connections = gauge(registry, "penstock_connections", "Open connections of clients, up to a second ago")

    def observe(self, num_connections: int, set_aside: Iterable[tuple[str, str, int]]) -> None:
        """`set_aside`: model, version, and how many of its replicas."""
        self.connections.set(num_connections)
        for model, version, count in set_aside:
            self.set_aside.labels(model, version).set(count)


@dataclass(slots=True, frozen=True)
class DeploymentTimes:
    """One deployment's histograms: looking them up by label is too slow to do at every token."""

    queue: Histogram
    first_token: Histogram
    inter_token: Histogram
    request: Histogram


class Latencies:
    def __init__(self, registry: CollectorRegistry) -> None:
        time = partial(Histogram, labelnames=DEPLOYMENT, registry=registry)
        self._families = (
            time("penstock_queue_seconds", "Arrival to first step", buckets=LATENCY_BUCKETS),
            time("penstock_time_to_first_token_seconds", "Arrival to first token", buckets=LATENCY_BUCKETS),
            time("penstock_inter_token_seconds", "Gap between deltas of one request", buckets=TOKEN_BUCKETS),
            time("penstock_request_seconds", "Arrival to the end of the answer", buckets=LATENCY_BUCKETS),
        )
        self._known: dict[tuple[str, str], DeploymentTimes] = {}

    def of(self, model: str, version: str) -> DeploymentTimes:
        """Deployments are few and never forgotten."""
        if (times := self._known.get((model, version))) is None:
            times = DeploymentTimes(*(family.labels(model, version) for family in self._families))
            self._known[model, version] = times
        return times
