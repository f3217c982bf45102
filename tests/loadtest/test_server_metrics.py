"""A Penstock's counters, as its /metrics writes them."""

from __future__ import annotations

from typing import Any

import pytest

from batching.stats import WorkerStats
from loadtest.client import base_url
from loadtest.records import BenchError
from loadtest.server_metrics import NAMES, EngineCounters, MetricsSource, parse
from server.metrics import Metrics

TEXT = """# TYPE penstock_engine_steps counter
penstock_engine_steps_total{model="a",version="1"} 10
penstock_engine_steps_total{model="a",version="2"} 5
penstock_engine_steps_total{model="b",version="1"} 100
# TYPE penstock_batch_size histogram
penstock_batch_size_bucket{model="a",version="1",le="+Inf"} 10
penstock_batch_size_sum{model="a",version="1"} 40
penstock_batch_size_count{model="a",version="1"} 10
# TYPE penstock_padding_cells counter
penstock_padding_cells_total{model="a",version="1"} 3
penstock_attention_cells_total{model="a",version="1"} 60
penstock_ungrouped_padding_cells_total{model="a",version="1"} 30
"""


@pytest.mark.parametrize(("model", "steps"), [("a", 15), ("a@1", 10), ("a@2", 5), ("b", 100), ("alias", 115)])
def test_of_the_model_asked_for(model: str, steps: int) -> None:
    assert parse(TEXT, model).steps == steps


def test_shares() -> None:
    counters = parse(TEXT, "a@1")
    assert (counters.batch_size, counters.padding_waste, counters.ungrouped_waste) == (4, 0.05, 0.5)
    assert (EngineCounters().batch_size, EngineCounters().padding_waste) == (None, None)
    assert EngineCounters(attention_cells=60, padding_cells=3).ungrouped_waste is None, "an older server"


@pytest.mark.parametrize("text", ["", "# TYPE other counter\nother_total 1\n", "<html>"])
def test_other_metrics(text: str) -> None:
    with pytest.raises(BenchError):
        parse(text, "a")


async def test_they_are_read_over_http(server: Any) -> None:
    source = MetricsSource.of(base_url(server.url), "admin-key-0123456789")
    first, second = await source.read("ok"), await source.read("ok")
    grown = second.since(first)
    assert grown is not None
    assert grown.steps == 10
    assert "admin-key" not in repr(source)


async def test_a_server_that_is_away(dead_url: str) -> None:
    with pytest.raises(BenchError, match=f"cannot read {dead_url}/metrics"):
        await MetricsSource.of(base_url(dead_url), "k").read("ok")


def test_the_names_are_those_that_the_server_writes() -> None:
    """The gateway's own registry, so that a renamed counter is noticed."""
    stats = WorkerStats(steps=1, batch_size_sum=1)
    metrics = Metrics()
    metrics.watch_workers(lambda: [("a", "1", stats, True)])
    text = metrics.render().decode()
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert set(NAMES.values()) <= names
