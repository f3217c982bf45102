"""Replays an audit log: the published invariant, and the counters counted again from the steps alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from quota.counters import CounterKey
from quota.ledger import AuditRecord, Counter, Event
from quota.levels import Dimension, Kind
from quota.meters import MINUTE_MS


def over(record: AuditRecord) -> list[Counter]:
    """Counters that this step left above what they may hold: no admission goes past a limit, no bucket overflows."""
    return [
        counter
        for counter in record.counters
        if counter.limit is not None
        and (counter.dimension.kind is Kind.BUCKET or record.event is Event.RESERVED)
        and counter.used > counter.limit * (MINUTE_MS if counter.dimension.kind is Kind.BUCKET else 1)
    ]


@dataclass
class Replay:
    """Of the log of one account whose leases all name the same layers."""

    num_admitted: int = 0
    num_expired: int = 0
    num_over: int = 0
    num_wrong: int = 0  # counters that the steps do not add up to
    held: dict[str, dict[CounterKey, int]] = field(default_factory=dict)
    totals: defaultdict[CounterKey, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, record: AuditRecord) -> None:
        self.num_admitted += record.event is Event.RESERVED
        self.num_expired += record.event is Event.EXPIRED
        self.num_over += bool(over(record))
        if record.event is Event.REFUSED:
            return
        before = self.held.setdefault(record.lease_id, {})
        for counter in record.counters:
            if counter.dimension.kind is not Kind.BUCKET:
                key = CounterKey(counter.level, counter.name, counter.dimension, counter.period)
                now = self._held_after(record, counter.dimension, before.get(key, 0))
                self.totals[key] += now - before.get(key, 0)
                before[key] = now
                self.num_wrong += self.totals[key] != counter.used
        if record.event in (Event.SETTLED, Event.RELEASED):
            del self.held[record.lease_id]

    @staticmethod
    def _held_after(record: AuditRecord, dimension: Dimension, before: int) -> int:
        is_tokens = dimension in (Dimension.TOKENS_PER_DAY, Dimension.TOKENS_PER_MONTH)
        if record.event is Event.RESERVED:
            return max(before, record.tokens if is_tokens else 1)
        if record.event is Event.RELEASED or dimension is Dimension.CONCURRENT:
            return 0
        return record.tokens if is_tokens else before
