"""One look at a server's /metrics, and what has changed between two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]


@dataclass(slots=True, frozen=True)
class Samples:
    """Values by name and labels."""

    values: Mapping[Series, float]

    @classmethod
    def parse(cls, text: str) -> Samples:
        families = text_string_to_metric_families(text)
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    @classmethod
    def sum(cls, parts: Iterable[Samples]) -> Samples:
        values: dict[Series, float] = {}
        for part in parts:
            for series, value in part.values.items():
                values[series] = values.get(series, 0) + value
        return cls(values)

    def since(self, before: Samples) -> Samples:
        """What counters have gained. One that fell was started again, and counts from nothing."""
        gained = {}
        for series, value in self.values.items():
            then = before.values.get(series, 0)
            gained[series] = value - then if value >= then else value
        return Samples(gained)

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The series of this name that carry these labels."""
        wanted = frozenset(labels.items())
        return ((dict(own), value) for (known, own), value in self.values.items() if known == name and wanted <= own)

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.of(name, **labels))

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Of a histogram, as Prometheus has it: linear within a bucket; None of an empty one."""
        buckets: dict[float, float] = {}
        for own, count in self.of(f"{name}_bucket", **labels):
            bound = float(own["le"])
            buckets[bound] = buckets.get(bound, 0) + count
        return _quantile(q, sorted(buckets.items()))


def _quantile(q: float, buckets: list[tuple[float, float]]) -> float | None:
    """`buckets`: upper bounds and the counts up to them, the last one infinite."""
    if not buckets or not buckets[-1][1]:
        return None
    rank, low, below = q * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets[:-1]:
        if count >= rank:
            return low + (bound - low) * (rank - below) / max(count - below, 1e-12)
        low, below = bound, count
    return low
