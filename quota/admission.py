"""The decision: what a request asks of each counter, and which limit refuses it. Changes nothing."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from quota.counters import Charge, CounterKey, Counters
from quota.ledger import CostAboveLimit, Refusal, Remaining
from quota.levels import Dimension, Kind, Layer, Unit
from quota.meters import Reading


@dataclass(frozen=True, slots=True)
class Demand:
    """What an admission asks of one counter: `cost` more, on top of the `held` that is in force.

    `limit` and `reading` are None for a budget that is counted but not limited.
    """

    key: CounterKey
    held: int
    cost: int
    limit: int | None
    reading: Reading | None


@dataclass(frozen=True, slots=True)
class Request:
    """One admission. `admitted_ms` and `charges` are those of its expired lease, if it had one."""

    layers: Collection[Layer]
    tokens: int
    admitted_ms: int
    charges: Mapping[CounterKey, Charge]


def demands(counters: Counters, request: Request, now: int) -> list[Demand]:
    """One for each counter: what the layers limit, and every budget.

    Raises `CostAboveLimit` where no wait would help, ValueError for a layer given twice.
    """
    asked: dict[CounterKey, Demand] = {}
    for layer in request.layers:
        for dimension in Dimension:
            if dimension.kind is Kind.BUDGET or layer.limits.get(dimension) is not None:
                demand = _demand(counters, request, layer, dimension, now)
                if demand.key in asked:
                    raise ValueError(f"the layer {layer.level} {layer.name!r} is given twice")
                asked[demand.key] = demand
    return list(asked.values())


def _demand(counters: Counters, request: Request, layer: Layer, dimension: Dimension, now: int) -> Demand:
    key = CounterKey.of(layer, dimension, request.admitted_ms)
    limit = layer.limits.get(dimension)
    target = request.tokens if dimension.unit is Unit.TOKENS else 1
    if limit is not None and max(1, target) > limit:
        raise CostAboveLimit(layer.level, layer.name, dimension, limit, target)
    held = request.charges[key].amount if key in request.charges else 0
    reading = None if limit is None else counters.reading(key, limit, now)
    return Demand(key, held, max(0, target - held), limit, reading)


def refusal(asked: list[Demand]) -> Refusal | None:
    """Of all the limits that refuse, the one with the longest wait; the first named among equals."""
    worst: Refusal | None = None
    for demand in asked:
        if demand.reading is None or not demand.cost or demand.reading.fits(demand.cost):
            continue  # a cost of nothing always fits: a lease admitted again may find its bucket full
        wait = demand.reading.wait_ms(demand.cost)
        if worst is None or (wait or 0) > (worst.retry_after_ms or 0):
            key = demand.key
            worst = Refusal(key.level, key.name, key.dimension, demand.reading.limit, wait)
    return worst


def remaining(counters: Counters, layers: Collection[Layer], now: int) -> Remaining:
    """What the tightest layer has left, for requests and for tokens. Concurrency is not among them."""
    return remaining_of(
        (dimension, counters.reading(CounterKey.of(layer, dimension, now), limit, now))
        for layer in layers
        for dimension, limit in layer.limits.items()
        if dimension.kind is not Kind.GAUGE
    )


def remaining_of(readings: Iterable[tuple[Dimension, Reading]]) -> Remaining:
    """The tightest of these readings, for requests and for tokens; of equal ones the first."""
    by_unit: dict[Unit, list[Reading]] = {Unit.REQUESTS: [], Unit.TOKENS: []}
    for dimension, reading in readings:
        by_unit[dimension.unit].append(reading)
    requests, tokens = _tightest(by_unit[Unit.REQUESTS]), _tightest(by_unit[Unit.TOKENS])
    return Remaining(
        limit_requests=requests.limit if requests else None,
        remaining_requests=requests.remaining if requests else None,
        reset_requests_ms=requests.reset_ms if requests else None,
        limit_tokens=tokens.limit if tokens else None,
        remaining_tokens=tokens.remaining if tokens else None,
        reset_tokens_ms=tokens.reset_ms if tokens else None,
    )


def _tightest(readings: list[Reading]) -> Reading | None:
    return min(readings, key=lambda reading: reading.remaining, default=None)
