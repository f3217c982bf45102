"""How an account's limits stand, for those who ask. Charges nothing and decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from quota.admission import NEAR_PERCENT
from quota.counters import CounterKey
from quota.ledger import AccountUsage
from quota.levels import Dimension, Kind, Layer, Level, Limits, Period, Plan
from quota.meters import MINUTE_MS, read, scale, window


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit. `name` is "" for the account, else the key's id, the model or the feature.

    `used` and `remaining` are whole requests or tokens, what is reserved now included; a bucket's fraction counts as
    used. `reset_ms` is the time until the limit is whole again, if nothing else comes; None for concurrency, which
    frees when requests end. A `shadow` limit may be used beyond its end.
    """

    level: Level
    name: str
    dimension: Dimension
    limit: int
    used: int
    remaining: int
    reset_ms: int | None
    shadow: bool

    @property
    def is_near(self) -> bool:
        """Whether the limit is nearly reached, or past."""
        return 100 * self.used >= NEAR_PERCENT * self.limit


def standings(plan: Plan, keys: Mapping[str, Limits], usage: AccountUsage) -> list[Standing]:
    """Every limit of the plan as it stood when the ledger was asked: the account's, each key's, then models and
    features by name.

    `keys` are the keys to tell of, by id, with the limits of their own: each one set stands in place of the plan's.
    """
    now = usage.now_ms
    used = {CounterKey(c.level, c.name, c.dimension, c.period): c.used for c in usage.counters}
    return [
        _standing(layer, dimension, limit, used.get(CounterKey.of(layer, dimension, now), 0), now)
        for layer in _layers(plan, keys)
        for dimension, limit in layer.limits.items()
    ]


def _layers(plan: Plan, keys: Mapping[str, Limits]) -> list[Layer]:
    return [
        Layer(Level.ACCOUNT, "", plan.account),
        *(Layer(Level.KEY, key_id, plan.key.overridden(own)) for key_id, own in keys.items()),
        *(Layer(Level.MODEL, name, limits) for name, limits in sorted(plan.models.items())),
        *(Layer(Level.FEATURE, name, limits) for name, limits in sorted(plan.features.items())),
    ]


def _standing(layer: Layer, dimension: Dimension, limit: int, used: int, now: int) -> Standing:
    if dimension.kind is Kind.BUCKET:
        used = min(used, limit * MINUTE_MS)  # a limit that was lowered since holds no more than its own minute
    ends_ms = now if dimension.period is Period.NONE else window(dimension.period, now).ends_ms
    reading = read(dimension, limit, used, ends_ms, now)
    return Standing(
        level=layer.level,
        name=layer.name,
        dimension=dimension,
        limit=limit,
        used=-(-used // scale(dimension)),
        remaining=reading.remaining,
        reset_ms=None if dimension.kind is Kind.GAUGE else reading.reset_ms,
        shadow=dimension in layer.limits.shadow,
    )
