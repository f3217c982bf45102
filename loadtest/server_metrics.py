"""What a Penstock says of itself: the counters of its `/metrics`, read before and after a run, with an admin key."""

from dataclasses import dataclass, fields
from typing import Protocol, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.client import shown
from loadtest.records import BenchError, one_line

SETTLE_S = 0.5  # after the last answer, until the last step has been reported; workers report ten times a second
SCRAPE_TIMEOUT_S = 10.0
NAMES = {
    "steps": "penstock_engine_steps_total",
    "sequences": "penstock_batch_size_sum",
    "prefill_tokens": "penstock_engine_prefill_tokens_total",
    "cached_tokens": "penstock_engine_cached_tokens_total",
    "generated_tokens": "penstock_engine_generated_tokens_total",
    "attention_cells": "penstock_attention_cells_total",
    "padding_cells": "penstock_padding_cells_total",
    "ungrouped_padding_cells": "penstock_ungrouped_padding_cells_total",
    "preemptions": "penstock_preemptions_total",
    "step_seconds": "penstock_engine_step_seconds_total",
}


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Of one deployment, or the difference of two readings. `sequences`: summed over the steps."""

    steps: float = 0
    sequences: float = 0
    prefill_tokens: float = 0
    cached_tokens: float = 0
    generated_tokens: float = 0
    attention_cells: float = 0
    padding_cells: float = 0
    ungrouped_padding_cells: float = 0  # 0: the server does not tell
    preemptions: float = 0
    step_seconds: float = 0

    def since(self, before: "EngineCounters") -> "EngineCounters | None":
        """None where they began anew meanwhile: a worker died."""
        grown = [getattr(self, f.name) - getattr(before, f.name) for f in fields(self)]
        return None if min(grown) < 0 else EngineCounters(*grown)

    @property
    def batch_size(self) -> float | None:
        """Sequences in a step, the mean."""
        return self.sequences / self.steps if self.steps else None

    @property
    def padding_waste(self) -> float | None:
        """Query-key pairs that padding added, as a share of those asked for."""
        return self.padding_cells / self.attention_cells if self.attention_cells else None

    @property
    def ungrouped_waste(self) -> float | None:
        """What it would be if all lengths of a step were padded to its longest."""
        if not self.attention_cells or self.ungrouped_padding_cells < self.padding_cells:
            return None
        return self.ungrouped_padding_cells / self.attention_cells


class CounterSource(Protocol):
    """Where the counters of what serves the requests are read."""

    async def read(self, model: str) -> EngineCounters:
        """Raises BenchError."""


@dataclass(frozen=True, slots=True)
class MetricsSource:
    """A Penstock's /metrics. The key stays out of the repr."""

    url: httpx.URL
    _headers: dict[str, str]

    @classmethod
    def of(cls, base_url: httpx.URL, admin_key: str) -> Self:
        """`base_url` ends in /v1; the metrics lie beside it."""
        return cls(base_url.copy_with(path="/metrics"), {"Authorization": f"Bearer {admin_key}"})

    def __repr__(self) -> str:
        return f"MetricsSource({shown(self.url)})"

    async def read(self, model: str) -> EngineCounters:
        """Of this model, or `name@version`; of all models where none has that name, as an alias has not.

        Raises BenchError: unreachable, refused, or not Penstock's metrics.
        """
        try:
            async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as http:
                response = await http.get(self.url, headers=self._headers)
        except httpx.HTTPError as error:
            raise BenchError(f"cannot read {shown(self.url)}: {one_line(str(error)) or type(error).__name__}") from None
        if not response.is_success:
            raise BenchError(f"{shown(self.url)} answered HTTP {response.status_code}; is --admin-key an admin key?")
        return parse(response.text, model)


def parse(text: str, model: str) -> EngineCounters:
    """Raises BenchError for what are no metrics of Penstock's."""
    fields_of = {name: field for field, name in NAMES.items()}
    sums: dict[str, dict[str, float]] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError as error:
        raise BenchError(f"the metrics are no Prometheus text: {one_line(str(error))}") from None
    for sample in samples:
        if (field := fields_of.get(sample.name)) is not None:
            sums.setdefault(_id(sample.labels), {})[field] = sample.value
    if not sums:
        raise BenchError("the metrics have none of Penstock's engine counters")
    name, _, version = model.partition("@")
    chosen = [values for id_, values in sums.items() if _is(id_, name, version)] or list(sums.values())
    totals = {field: sum(values.get(field, 0) for values in chosen) for field in NAMES}
    return EngineCounters(**totals)


def _id(labels: dict[str, str]) -> str:
    return f"{labels.get('model', '')}@{labels.get('version', '')}"


def _is(id_: str, name: str, version: str) -> bool:
    its_name, _, its_version = id_.rpartition("@")
    return its_name == name and version in ("", its_version)
