"""How every model stands, as a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.model_state import Standing

StandingSource = Callable[[], Iterable[tuple[str, str, Standing]]]
"""Model, version and standing of every deployment."""


class ModelCollector(Collector):
    """One sample a state: 1 for the one that it is in, 0 for the others."""

    def __init__(self, source: StandingSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("penstock_model_state", "How a model stands", labels=("model", "version", "state"))
        for model, version, standing in self._source():
            for state in Standing:
                gauge.add_metric((model, version, state), float(state is standing))
        yield gauge
