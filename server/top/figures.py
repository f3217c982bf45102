"""What is shown of a look at the metrics: plain values, made of what is and of what was gained since the last look."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from engines.types import FinishReason
from server.top.samples import Samples

DEPLOYMENTS = "penstock_replicas"  # has a series of each
EVENTS = {
    "penstock_quota_refusals_total": ("quota", ("level", "dimension")),
    "penstock_failovers_total": ("failover", ("outcome",)),
    "penstock_ejections_total": ("set aside", ("reason",)),
    "penstock_worker_restarts_total": ("worker restarted", ("model", "version")),
    "penstock_engine_out_of_memory_total": ("out of memory", ("model", "version")),
}


@dataclass(slots=True, frozen=True)
class Look:
    """`gained` within `seconds`."""

    now: Samples
    gained: Samples
    seconds: float

    def rate(self, name: str, **labels: str) -> float:
        return self.gained.total(name, **labels) / self.seconds


@dataclass(slots=True, frozen=True)
class ModelFigures:
    """None: nothing to tell of. Rates are of a second, times in seconds."""

    name: str
    state: str
    ready: int
    replicas: int
    set_aside: int
    running: int
    waiting: int
    requests: float
    tokens_in: float
    tokens_out: float
    first_token_p50: float | None
    first_token_p95: float | None
    gap_p50: float | None
    kv_use: float | None  # of 1
    cache_hits: float | None  # of 1, among prompt tokens


@dataclass(slots=True, frozen=True)
class EventFigures:
    """Something that went wrong: `what` by `code`."""

    what: str
    code: str
    per_minute: float
    total: int


def models(look: Look) -> list[ModelFigures]:
    found = {(labels["model"], labels["version"]) for labels, _ in look.now.of(DEPLOYMENTS)}
    return [_model(look, model, version) for model, version in sorted(found)]


def _model(look: Look, model: str, version: str) -> ModelFigures:
    own = {"model": model, "version": version}
    now, gained = look.now, look.gained
    computed = gained.total("penstock_engine_prefill_tokens_total", **own)
    cached = gained.total("penstock_engine_cached_tokens_total", **own)
    first_token, gap = "penstock_time_to_first_token_seconds", "penstock_inter_token_seconds"
    return ModelFigures(
        name=f"{model}@{version}",
        state=_state(now, own),
        ready=int(now.total("penstock_replicas_ready", **own)),
        replicas=int(now.total(DEPLOYMENTS, **own)),
        set_aside=int(now.total("penstock_replicas_set_aside", **own)),
        running=int(now.total("penstock_requests_running", **own)),
        waiting=int(now.total("penstock_requests_waiting", **own)),
        requests=look.rate("penstock_requests_total", **own),
        tokens_in=(computed + cached) / look.seconds,
        tokens_out=look.rate("penstock_engine_generated_tokens_total", **own),
        first_token_p50=gained.quantile(0.5, first_token, **own),
        first_token_p95=gained.quantile(0.95, first_token, **own),
        gap_p50=gained.quantile(0.5, gap, **own),
        kv_use=_share(now.total("penstock_kv_blocks_used", **own), now.total("penstock_kv_blocks", **own)),
        cache_hits=_share(cached, cached + computed),
    )


def _state(now: Samples, own: dict[str, str]) -> str:
    """Of several servers, with how many each; those that are ready are told last."""
    counts = {labels["state"]: int(value) for labels, value in now.of("penstock_model_state", **own) if value}
    if len(counts) <= 1:
        return next(iter(counts), "unknown")
    return ", ".join(f"{state} {count}" for state, count in sorted(counts.items(), key=lambda each: each[0] == "ready"))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def events(look: Look) -> list[EventFigures]:
    """Errors by code, refusals and what happened to engines; the most frequent of each kind first."""
    totals, gains = _events(look.now), _events(look.gained)
    rows = [
        EventFigures(what, code, 60 * gains[what, code] / look.seconds, int(total))
        for (what, code), total in totals.items()
        if total
    ]
    return sorted(rows, key=lambda row: (row.what, -row.total, row.code))


def _events(samples: Samples) -> dict[tuple[str, str], float]:
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for labels, value in samples.of("penstock_requests_total"):
        if labels["outcome"] not in set(FinishReason):
            counts["failed", labels["outcome"]] += value
    for labels, value in samples.of("penstock_requests_refused_total"):
        counts["refused", f"{labels['status']} {labels['code']}"] += value
    for name, (what, keys) in EVENTS.items():
        for labels, value in samples.of(name):
            counts[what, " ".join(labels[key] for key in keys)] += value
    return counts
