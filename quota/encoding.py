"""How the shared ledger's scripts see layers, counters and answers. Pure: knows nothing of Redis.

A counter is named by its field: two letters for its dimension, then `level:name`. The first letter is the
counter's home (b(ucket), g(auge), d(ay), m(onth)), the second its unit (r(equests), t(okens)).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from msgspec import msgpack

from quota.admission import Demand, near, refusal, remaining_of
from quota.counters import CounterKey
from quota.ledger import (
    AccountUsage,
    AuditRecord,
    CostAboveLimit,
    Counter,
    Event,
    QuotaDecision,
    Refusal,
    Remaining,
    Reservation,
)
from quota.levels import Dimension, Kind, Layer, Level, Limits, Period, Unit
from quota.meters import Bucket, Reading, read, scale, window, window_end


def _code(dimension: Dimension) -> str:
    home = dimension.period if dimension.kind is Kind.BUDGET else dimension.kind
    return home[0] + dimension.unit[0]


CODES = {dimension: _code(dimension) for dimension in Dimension}
DIMENSIONS = {code: dimension for dimension, code in CODES.items()}
if len(DIMENSIONS) != len(CODES) or {p[0] for p in Period} & {k[0] for k in Kind if k is not Kind.BUDGET}:
    raise TypeError("two dimensions are counted in the same way: the scripts could not tell them apart")


EMPTY_RECORD = [-1, -1]
"""A layer's counters before anything is counted (counters.lua): its day and month, none yet, then each dimension."""
SLOTS: dict[Dimension, int] = {}
"""Where a dimension stands in it: its count, or its bucket's used, updated and limit."""
for _dimension in Dimension:
    SLOTS[_dimension] = len(EMPTY_RECORD)
    EMPTY_RECORD += [0, 0, -1] if _dimension.kind is Kind.BUCKET else [0]


@dataclass(frozen=True, slots=True)
class Field:
    """One counter that a request's layers touch; `limit` is None for a budget that is only counted, and refuses
    nothing in `shadow`."""

    level: Level
    name: str
    dimension: Dimension
    limit: int | None
    shadow: bool = False

    @property
    def code(self) -> str:
        return CODES[self.dimension] + layer_code(self.level, self.name)

    def key(self, now: int) -> CounterKey:
        return CounterKey(self.level, self.name, self.dimension, window(self.dimension.period, now).index)

    def reading(self, used: int, at: int, now: int) -> Reading:
        """Against its limit; `at` is when the request was admitted, whose period it is counted in."""
        assert self.limit is not None
        period = self.dimension.period
        ends_ms = now if period is Period.NONE else window_end(period, window(period, at).index)
        return read(self.dimension, self.limit, used, ends_ms, now)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request's layers as the scripts take them.

    `limited` are the counters that an answer speaks of, in its order. `repeats` is the place in `fields` of
    the first counter that was there before: a layer is given twice.
    """

    text: bytes
    fields: tuple[Field, ...]
    limited: tuple[Field, ...]
    repeats: int | None

    def fault(self, tokens: int) -> ValueError | None:
        """Why no wait would ever admit a request of so many tokens; None if one might."""
        for place, field in enumerate(self.fields):
            cost = tokens if field.dimension.unit is Unit.TOKENS else 1
            if field.limit is not None and not field.shadow and max(1, cost) > field.limit:
                return CostAboveLimit(field.level, field.name, field.dimension, field.limit, cost)
            if place == self.repeats:
                return ValueError(f"the layer {field.level} {field.name!r} is given twice")
        return None


@lru_cache(maxsize=4096)
def encode(layers: tuple[Layer, ...]) -> Encoded:
    """Raises ValueError for a name or a limit that no ledger could count."""
    fields = tuple(field for layer in layers for field in _fields(layer))
    flat = [part for layer in layers for part in (layer_code(layer.level, layer.name), *_coded_limits(layer.limits))]
    text = json.dumps(flat, separators=(",", ":"), ensure_ascii=False).encode()
    codes = [field.code for field in fields]
    repeats = next((place for place, code in enumerate(codes) if code in codes[:place]), None)
    return Encoded(text, fields, tuple(field for field in fields if field.limit is not None), repeats)


def _fields(layer: Layer) -> Iterator[Field]:
    for dimension in Dimension:
        limit = layer.limits.get(dimension)
        if limit is not None and not 0 <= limit <= dimension.max_limit:
            raise ValueError(f"a {dimension} limit must be within 0..{dimension.max_limit}, not {limit}")
        if limit is not None or dimension.kind is Kind.BUDGET:
            yield Field(layer.level, layer.name, dimension, limit, dimension in layer.limits.shadow)


def _coded_limits(limits: Limits) -> Iterator[int]:
    """Of each dimension in turn, as limit_of() in counters.lua reads it: -1 without one, -2 - limit in shadow."""
    for dimension in Dimension:
        limit = limits.get(dimension)
        yield -1 if limit is None else -2 - limit if dimension in limits.shadow else limit


@lru_cache(maxsize=4096)
def decode(text: bytes) -> tuple[Layer, ...]:
    """The layers that `encode` was given."""
    flat, stride = json.loads(text), 1 + len(Dimension)
    return tuple(_layer(flat[at], flat[at + 1 : at + stride]) for at in range(0, len(flat), stride))


def _layer(code: str, coded_limits: list[int]) -> Layer:
    level, _, name = code.partition(":")
    coded = {dimension: limit for dimension, limit in zip(Dimension, coded_limits, strict=True) if limit != -1}
    limits = {dimension.value: limit if limit >= 0 else -2 - limit for dimension, limit in coded.items()}
    shadow = frozenset(dimension for dimension, limit in coded.items() if limit < 0)
    return Layer(Level(level), name, Limits(**limits, shadow=shadow))


def layer_code(level: Level, name: str) -> str:
    return f"{level}:{name}"


def parse_code(code: str) -> tuple[Level, str, Dimension]:
    level, _, name = code[2:].partition(":")
    return Level(level), name, DIMENSIONS[code[:2]]


# -- answers ---------------------------------------------------------------------------------------------


def decision(
    lease_id: str, account: str, layers: tuple[Layer, ...], encoded: Encoded, reply: list[Any]
) -> QuotaDecision:
    """What reserve.lua answered, once it is neither 'unopened' nor 'impossible'."""
    status, now = reply[0], int(reply[1])
    if status == b"refused":
        left = remaining(encoded, reply[3], now)
        return QuotaDecision(lease_id, False, left, refusal=_refusal(encoded, reply, now))
    is_repeated = status == b"repeated"
    reservation = Reservation(
        lease_id, account, decode(reply[5]) if is_repeated else layers, int(reply[4]), int(reply[2])
    )
    left = remaining(encoded, reply[3], now)
    stands = _stands(encoded, reply[3]) if status == b"admitted" else []
    return QuotaDecision(
        lease_id,
        True,
        left,
        reservation,
        repeated=is_repeated,
        near=near((field.level, field.dimension, limit, used) for field, limit, used in stands if not field.shadow),
        shadowed=tuple(
            Refusal(field.level, field.name, field.dimension, limit, None)
            for field, limit, used in stands
            if field.shadow and used > limit * scale(field.dimension)
        ),
    )


def _stands(encoded: Encoded, used: bytes) -> list[tuple[Field, int, int]]:
    """Each limited counter with its limit and what is used of it."""
    counts = map(int, used.split())
    return [(field, field.limit or 0, count) for field, count in zip(encoded.limited, counts, strict=True)]


def _refusal(encoded: Encoded, reply: list[Any], now: int) -> Refusal | None:
    admitted = int(reply[2])
    used, costs = map(int, reply[4].split()), map(int, reply[5].split())
    return refusal(
        [
            Demand(field.key(admitted), 0, cost, field.limit, field.reading(count, admitted, now))
            for field, count, cost in zip(encoded.limited, used, costs, strict=True)
            if not field.shadow
        ]
    )


def remaining(encoded: Encoded, used: bytes, now: int) -> Remaining:
    return remaining_of(
        (field.dimension, field.reading(int(count), now, now))
        for field, count in zip(encoded.limited, used.split(), strict=True)
        if field.dimension.kind is not Kind.GAUGE and not field.shadow
    )


def usage(account: str, reply: list[Any]) -> AccountUsage:
    """What usage.lua answered. Counters that say nothing are left out."""
    now, records, homes, leases = int(reply[0]), reply[1], reply[2], reply[3]
    counters = [
        counter
        for layer, packed in zip(records[::2], records[1::2], strict=True)
        for counter in _counters(layer.decode(), packed, now)
        if counter.used
    ]
    counters += [
        Counter(*parse_code(code.decode()), int(home[1:]), int(count), None)
        for home, pairs in zip(homes[::2], homes[1::2], strict=True)
        for code, count in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return AccountUsage(
        account,
        now,
        tuple(sorted(counters, key=lambda counter: (counter.level, counter.name, counter.dimension, counter.period))),
        tuple(
            Reservation(lease.decode(), account, decode(layers), int(tokens), int(expires))
            for lease, expires, tokens, layers in zip(*(leases[n::4] for n in range(4)), strict=True)
        ),
    )


def _counters(layer: str, packed: bytes, now: int) -> Iterator[Counter]:
    """Of one layer's record, in the periods that it is in."""
    record: list[int] = msgpack.decode(packed)
    periods = {Period.NONE: 0, Period.DAY: record[0], Period.MONTH: record[1]}
    level, _, name = layer.partition(":")
    for dimension, slot in SLOTS.items():
        used, limit = record[slot], None
        if dimension.kind is Kind.BUCKET:
            bucket = Bucket(*record[slot : slot + 3])
            limit = max(0, bucket.limit)  # -1: never charged
            used = bucket.level(now, limit)
        yield Counter(Level(level), name, dimension, periods[dimension.period], used, limit)


def audit_record(account: str, entry: list[bytes]) -> AuditRecord:
    """One entry of an account's audit stream."""
    head, counters = entry[:8], entry[8:]
    event, now, lease_id, tokens = (value.decode() for value in head[1::2])
    return AuditRecord(
        Event(event),
        int(now),
        account,
        lease_id,
        int(tokens),
        tuple(_audited(code, value) for code, value in zip(counters[::2], counters[1::2], strict=True)),
    )


def _audited(code: bytes, value: bytes) -> Counter:
    period, used, limit = map(int, value.split())
    return Counter(*parse_code(code.decode()), period, used, None if limit < 0 else limit)
