"""What `penstock top` tells of metrics."""

from __future__ import annotations

from batching.stats import WorkerStats
from quota.levels import Dimension, Level
from server.metrics import Metrics
from server.model_state import Standing
from server.top.figures import Look, events, models
from server.top.samples import Samples


class Served:
    """The metrics of a server that does what a test says."""

    def __init__(self) -> None:
        self.stats = WorkerStats(kv_blocks=10)
        self.standing = Standing.READY
        self.metrics = Metrics()
        self.metrics.watch_workers(lambda: [("m", "1", self.stats, True), ("m", "1", WorkerStats(), False)])
        self.metrics.watch_models(lambda: [("m", "1", self.standing)])

    def samples(self) -> Samples:
        return Samples.parse(self.metrics.render().decode())


def test_a_models_figures() -> None:
    served = Served()
    before = served.samples()
    stats = served.stats
    stats.running, stats.waiting, stats.kv_blocks_used = 3, 2, 4
    stats.prefill_tokens, stats.cached_tokens, stats.generated_tokens = 30, 10, 100
    served.metrics.of("m", "1").first_token.observe(0.2)
    served.metrics.requests.labels("m", "1", "/v1/chat/completions", "stop").inc(4)
    served.metrics.health.observe(7, [("m", "1", 1)])
    now = served.samples()
    look = Look(now, now.since(before), seconds=2.0)
    (model,) = models(look)
    assert (model.name, model.state) == ("m@1", "ready")
    assert (model.ready, model.replicas, model.set_aside) == (1, 2, 1)
    assert (model.running, model.waiting) == (3, 2)
    assert (model.requests, model.tokens_in, model.tokens_out) == (2, 20, 50)
    assert (model.kv_use, model.cache_hits) == (0.4, 0.25)
    assert model.first_token_p50 is not None
    assert 0.1 < model.first_token_p50 < 0.25
    assert model.gap_p50 is None
    assert look.now.total("penstock_connections") == 7
    assert not events(look)


def test_servers_that_do_not_agree_on_a_models_state() -> None:
    one, other = Served(), Served()
    other.standing = Standing.AWAY
    both = Samples.sum([one.samples(), other.samples()])
    (model,) = models(Look(both, Samples({}), 1.0))
    assert model.state == "away 1, ready 1"
    assert model.replicas == 4


def test_what_went_wrong_is_told_by_code() -> None:
    served = Served()
    served.metrics.requests.labels("m", "1", "/v1/completions", "engine_failed").inc(3)
    before = served.samples()
    served.metrics.requests.labels("m", "1", "/v1/completions", "engine_failed").inc()
    served.metrics.requests.labels("m", "1", "/v1/completions", "abort").inc()
    served.metrics.observe_refused(404, "model_not_found")
    served.metrics.quota.refusals.labels(Level.ACCOUNT, Dimension.TPM).inc()
    served.stats.restarts = 2
    now = served.samples()
    rows = events(Look(now, now.since(before), seconds=30.0))
    assert [(row.what, row.code, row.per_minute, row.total) for row in rows] == [
        ("failed", "engine_failed", 2, 4),
        ("quota", "account tpm", 2, 1),
        ("refused", "404 model_not_found", 2, 1),
        ("worker restarted", "m 1", 4, 2),
    ]
