"""What can be limited, and by how much: levels, dimensions, limits, layers and plans.

Nothing here counts anything. A ledger (`quota.ledger`) is handed the layers of one request and counts.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self


class Level(StrEnum):
    """Who or what a layer limits. Models and features are counted within one account."""

    ACCOUNT = "account"
    KEY = "key"
    MODEL = "model"
    FEATURE = "feature"


class Kind(StrEnum):
    """How a dimension is counted."""

    BUCKET = "bucket"  # leaks continuously: a full one is empty after a minute
    BUDGET = "budget"  # spent + reserved within a calendar period, UTC
    GAUGE = "gauge"  # held now, free again when the lease ends


class Unit(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"


class Period(StrEnum):
    """The calendar period (UTC) of a budget; NONE for what is not a budget."""

    NONE = "none"
    DAY = "day"
    MONTH = "month"


class Dimension(StrEnum):
    """What is limited. A new one is an entry here and the field of its name in `Limits`."""

    kind: Kind
    unit: Unit
    period: Period

    def __new__(cls, value: str, kind: Kind, unit: Unit, period: Period = Period.NONE) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.kind, member.unit, member.period = kind, unit, period
        return member

    RPM = "rpm", Kind.BUCKET, Unit.REQUESTS
    TPM = "tpm", Kind.BUCKET, Unit.TOKENS
    REQUESTS_PER_DAY = "requests_per_day", Kind.BUDGET, Unit.REQUESTS, Period.DAY
    TOKENS_PER_DAY = "tokens_per_day", Kind.BUDGET, Unit.TOKENS, Period.DAY
    TOKENS_PER_MONTH = "tokens_per_month", Kind.BUDGET, Unit.TOKENS, Period.MONTH
    CONCURRENT = "concurrent", Kind.GAUGE, Unit.REQUESTS

    @property
    def max_limit(self) -> int:
        """The largest limit that stays exact in 2**53, where a shared ledger's script counts.

        A bucket counts in sixty-thousandths of its unit.
        """
        return 10**11 if self.kind is Kind.BUCKET else 10**15


_DIMENSIONS = {dimension.value: dimension for dimension in Dimension}
MAX_NAME = 256
MIN_TOKENS = 2
"""What the smallest request may cost: a token of prompt and one of answer."""

FEATURES = frozenset(
    {
        "chat",
        "completions",
        "embeddings",
        "rerank",
        "responses",
        "messages",
        "websocket",
        "stream",
        "tools",
        "structured_output",
        "logprobs",
        "vision",
        "batch",
        "fine_tuning",
    }
)


class LimitError(ValueError):
    """A table of limits that can't be read. The message is one line: the key's path, what was expected."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one layer, an optional integer a dimension: None is unlimited, 0 admits nothing.

    Those in `shadow` refuse nothing: what goes past them is counted and reported.
    """

    rpm: int | None = None
    tpm: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent: int | None = None
    shadow: frozenset[Dimension] = frozenset()

    @classmethod
    def parse(cls, mapping: object, where: str) -> Self:
        """Read a table such as `{ rpm = 600, tpm = 90000, shadow = ["tpm"] }`; `where` is its path in the file.

        Raises `LimitError` for an unknown name, a wrong type, a value that no request could meet, that is below 0 or
        too large to be exact.
        """
        table = dict(_table(mapping, where, "a table of limits"))
        shadow = _shadow(table.pop("shadow", []), table, where)
        limits = {_dimension(name, where): _limit(name, value, where) for name, value in table.items()}
        return cls(**limits, shadow=shadow)

    def table(self) -> dict[str, Any]:
        """What `parse` reads."""
        limits: dict[str, Any] = {dimension.value: limit for dimension, limit in self.items()}
        return limits | ({"shadow": [d.value for d in Dimension if d in self.shadow]} if self.shadow else {})

    def get(self, dimension: Dimension) -> int | None:
        value: int | None = getattr(self, dimension)
        return value

    def items(self) -> list[tuple[Dimension, int]]:
        """The dimensions that are limited, in the order of `Dimension`."""
        return [(d, limit) for d in Dimension if (limit := self.get(d)) is not None]

    def enforced(self) -> list[tuple[Dimension, int]]:
        """Those that refuse."""
        return [(dimension, limit) for dimension, limit in self.items() if dimension not in self.shadow]

    def overridden(self, other: "Limits | None") -> "Limits":
        """These limits, with every one that `other` sets in place of ours, shadow or not."""
        if other is None:
            return self
        theirs = {dimension for dimension, _ in other.items()}
        limits = {d.value: other.get(d) if d in theirs else self.get(d) for d in Dimension}
        return Limits(**limits, shadow=(self.shadow - theirs) | other.shadow)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self != _UNLIMITED


_UNLIMITED = Limits()
if [f.name for f in fields(Limits)] != [*(d.value for d in Dimension), "shadow"]:  # both are edited together
    raise TypeError("Limits must have one field for each Dimension, in its order")


@dataclass(frozen=True, slots=True)
class Layer:
    """One set of limits that a request touches. `name` is "" for the account, else the key's id,
    the model (`name` or `name@version`) or the feature."""

    level: Level
    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """A named set of limits that accounts share. What it does not name is unlimited."""

    name: str
    account: Limits = _UNLIMITED
    key: Limits = _UNLIMITED
    models: Mapping[str, Limits] = field(default_factory=dict)
    features: Mapping[str, Limits] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, mapping: object) -> Self:
        """Read the table `quota.plans.<name>`. Raises `LimitError`."""
        where = _path("quota.plans", name)
        table = _table(mapping, where, "a table")
        for key in table.keys() - {"account", "key", "models", "features"}:
            raise LimitError(f"{_path(where, key)}: unknown key, expected account, key, models or features")
        features = _limits_by_name(table.get("features", {}), f"{where}.features")
        for feature in sorted(features.keys() - FEATURES):
            known = ", ".join(sorted(FEATURES))
            raise LimitError(f"{_path(where + '.features', feature)}: unknown feature, expected one of {known}")
        return cls(
            name=name,
            account=Limits.parse(table.get("account", {}), f"{where}.account"),
            key=Limits.parse(table.get("key", {}), f"{where}.key"),
            models=_model_limits(table.get("models", {}), f"{where}.models"),
            features=features,
        )

    def tables(self) -> dict[str, Any]:
        """What `parse` reads; what limits nothing is left out."""
        named = {"models": self.models, "features": self.features}
        tables: dict[str, Any] = {"account": self.account.table(), "key": self.key.table()}
        tables |= {what: {name: limits.table() for name, limits in of.items()} for what, of in named.items()}
        return {what: table for what, table in tables.items() if table}

    def overridden(self, other: "Plan") -> "Plan":
        """This plan, with every limit that `other` sets in place of ours: an account's own agreements."""
        return Plan(
            name=self.name,
            account=self.account.overridden(other.account),
            key=self.key.overridden(other.key),
            models=_overlaid(self.models, other.models),
            features=_overlaid(self.features, other.features),
        )

    def layers(
        self,
        key_id: str,
        model: str,
        version: str,
        features: Collection[str],
        key_limits: Limits | None = None,
    ) -> tuple[Layer, ...]:
        """The layers that one request touches, those without any limit left out, in a fixed order.

        A model may be limited as `name` (all versions counted together), as `name@version`, or as both.
        `key_limits` are the key's own: each one it sets stands in place of the plan's.
        """
        candidates = [
            Layer(Level.ACCOUNT, "", self.account),
            Layer(Level.KEY, key_id, self.key.overridden(key_limits)),
            *(
                Layer(Level.MODEL, name, self.models[name])
                for name in (model, f"{model}@{version}")
                if name in self.models
            ),
            *(
                Layer(Level.FEATURE, name, self.features[name])
                for name in sorted(set(features))
                if name in self.features
            ),
        ]
        return tuple(layer for layer in candidates if layer.limits)


DEFAULT_PLAN = Plan("default", account=Limits(rpm=6000, tpm=10_000_000, concurrent=256))


def _overlaid(ours: Mapping[str, Limits], theirs: Mapping[str, Limits]) -> dict[str, Limits]:
    return {name: ours.get(name, _UNLIMITED).overridden(theirs.get(name)) for name in ours.keys() | theirs.keys()}


def _limits_by_name(mapping: object, where: str) -> dict[str, Limits]:
    table = _table(mapping, where, "a table of tables of limits")
    return {name: Limits.parse(limits, _path(where, name)) for name, limits in table.items()}


def _model_limits(mapping: object, where: str) -> dict[str, Limits]:
    limits = _limits_by_name(mapping, where)
    for name in limits:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            expected = f"expected a model's name: 1 to {MAX_NAME} visible characters"
            raise LimitError(f"{_path(where, name[:MAX_NAME])}: {expected}")
    return limits


def _table(value: object, where: str, expected: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise LimitError(f"{where}: expected {expected}, got {_shown(value)}")
    return value


def _dimension(name: str, where: str) -> str:
    if name not in _DIMENSIONS:
        raise LimitError(f"{_path(where, name)}: unknown limit, expected one of {', '.join(Dimension)}")
    return name


def _limit(name: str, value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LimitError(f"{_path(where, name)}: expected an integer >= 0, got {_shown(value)}")
    most = _DIMENSIONS[name].max_limit
    if value > most:
        raise LimitError(f"{_path(where, name)}: expected at most {most}, got {value}")
    if _DIMENSIONS[name].unit is Unit.TOKENS and 0 < value < MIN_TOKENS:
        expected = f"0 (nothing is admitted) or at least {MIN_TOKENS}, what the smallest request may cost"
        raise LimitError(f"{_path(where, name)}: expected {expected}, got {value}")
    return value


def _shadow(value: object, table: Mapping[str, Any], where: str) -> frozenset[Dimension]:
    path = _path(where, "shadow")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise LimitError(f"{path}: expected a list of limits that stand beside it, got {_shown(value)}")
    for name in value:
        if name not in table:
            raise LimitError(f"{path}: {_shown(name)} is no limit of {where}")
    return frozenset(_DIMENSIONS[_dimension(name, where)] for name in value)


def _path(where: str, key: str) -> str:
    """`key` below `where`, quoted as TOML quotes it when it is not a bare key."""
    return f"{where}.{key if re.fullmatch('[A-Za-z0-9_-]+', key) else json.dumps(key)}"


def _shown(value: object) -> str:
    """A value as its file shows it, on one line of bounded length."""
    return json.dumps(value, default=str)[:80]
