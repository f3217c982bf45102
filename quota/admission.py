"""The decision: what a request asks of each counter, and which limit refuses it. Changes nothing."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from quota.counters import Charge, CounterKey, Counters
from quota.ledger import CostAboveLimit, Refusal, Remaining
from quota.levels import Dimension, Kind, Layer, Level, Unit
from quota.meters import Reading, scale

NEAR_PERCENT = 80


@dataclass(frozen=True, slots=True)
class Demand:
    """What an admission asks of one counter: `cost` more, on top of the `held` that is in force.

    `limit` and `reading` are None for a budget that is counted but not limited. A `shadow` limit refuses nothing.
    """

    key: CounterKey
    held: int
    cost: int
    limit: int | None
    reading: Reading | None
    shadow: bool = False

    @property
    def enforced(self) -> int | None:
        """The limit, if it refuses."""
        return None if self.shadow else self.limit


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
    shadow = dimension in layer.limits.shadow
    target = request.tokens if dimension.unit is Unit.TOKENS else 1
    if limit is not None and not shadow and max(1, target) > limit:
        raise CostAboveLimit(layer.level, layer.name, dimension, limit, target)
    held = request.charges[key].amount if key in request.charges else 0
    reading = None if limit is None else counters.reading(key, limit, now)
    return Demand(key, held, max(0, target - held), limit, reading, shadow)


def refusal(asked: list[Demand]) -> Refusal | None:
    """Of all the limits that refuse, the one with the longest wait; the first named among equals."""
    worst: Refusal | None = None
    for demand in asked:
        if demand.reading is None or demand.shadow or not demand.cost or demand.reading.fits(demand.cost):
            continue  # a cost of nothing always fits: a lease admitted again may find its bucket full
        wait = demand.reading.wait_ms(demand.cost)
        if worst is None or (wait or 0) > (worst.retry_after_ms or 0):
            key = demand.key
            worst = Refusal(key.level, key.name, key.dimension, demand.reading.limit, wait)
    return worst


def near(stands: Iterable[tuple[Level, Dimension, int, int]]) -> tuple[tuple[Level, Dimension], ...]:
    """Which of these limits, given with what is used of them (times `meters.scale`), are nearly reached."""
    return tuple(
        (level, dimension)
        for level, dimension, limit, used in stands
        if 100 * used >= NEAR_PERCENT * limit * scale(dimension)
    )


def reports(asked: list[Demand]) -> tuple[tuple[tuple[Level, Dimension], ...], tuple[Refusal, ...]]:
    """Of a request that is admitted: the limits that it nearly reaches, and the shadow limits that it goes past."""
    limited = [
        (demand, demand.reading.limit, demand.reading.used + demand.cost * scale(demand.key.dimension))
        for demand in asked
        if demand.reading is not None
    ]
    shadowed = tuple(
        Refusal(demand.key.level, demand.key.name, demand.key.dimension, limit, None)
        for demand, limit, used in limited
        if demand.shadow and used > limit * scale(demand.key.dimension)
    )
    stands = (
        (demand.key.level, demand.key.dimension, limit, used) for demand, limit, used in limited if not demand.shadow
    )
    return near(stands), shadowed


def remaining(counters: Counters, layers: Collection[Layer], now: int) -> Remaining:
    """What the tightest layer has left, for requests and for tokens. Concurrency is not among them."""
    return remaining_of(
        (dimension, counters.reading(CounterKey.of(layer, dimension, now), limit, now))
        for layer in layers
        for dimension, limit in layer.limits.enforced()
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
