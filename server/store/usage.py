"""What was used: one row a request, written in batches, and its sums."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Label, Select, case, func, literal, select, true
from sqlalchemy.orm import InstrumentedAttribute

from quota.levels import Level
from server.store.database import Database
from server.store.dialects import elements, insert_or_ignore
from server.store.records import REPLAYED, UsageDimension, UsageRecord, UsageSum, UsageTotal
from server.store.tables import NameSet, UsageRow

_Column = InstrumentedAttribute[Any] | Label[Any]
_COLUMNS: dict[UsageDimension, tuple[_Column, ...]] = {
    UsageDimension.ACCOUNT: (UsageRow.account_id,),
    UsageDimension.KEY: (UsageRow.key_id,),
    UsageDimension.MODEL: (UsageRow.model, UsageRow.version),
    UsageDimension.DAY: (UsageRow.day,),
}

_IS_REPLAYED = UsageRow.cache.in_(REPLAYED)  # of null it is null, which is no yes


class UsageLog:
    """The table itself. The hot path records through `UsageWriter`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, records: Sequence[UsageRecord]) -> None:
        """Write them in one transaction. A request id that is stored already is left as it is."""
        rows = [asdict(record) | {"day": record.day} for record in records]
        async with self._database.write() as session:
            await insert_or_ignore(session, UsageRow, rows, unique="request_id")

    async def totals_since(
        self, day: date, account_id: str | None = None, without: Collection[str] = ()
    ) -> list[UsageTotal]:
        """Usage of each layer on each day from `day` on: what a ledger's budgets are rebuilt from.

        Of all accounts, or of this one. `without` are request ids that are left out, any number of them.
        """
        sums: dict[tuple[str, Level, str, date], tuple[int, int]] = {}
        async with self._database.read() as session:
            rows = await session.execute(self._totals(day, account_id, without))
            for account, key, model, version, features, when, requests, used in rows:
                for level, name in _layers(key, model, version, features):
                    before = sums.get((account, level, name, when), (0, 0))
                    sums[account, level, name, when] = (before[0] + requests, before[1] + int(used))
        return [UsageTotal(*group, *counts) for group, counts in sorted(sums.items())]

    def _totals(self, day: date, account_id: str | None, without: Collection[str]) -> Select[*tuple[Any, ...]]:
        dimensions = (UsageRow.account_id, UsageRow.key_id, UsageRow.model, UsageRow.version, UsageRow.features)
        columns = (*dimensions, UsageRow.day)
        tokens = UsageRow.prompt_tokens + UsageRow.completion_tokens
        charged = func.sum(case((_IS_REPLAYED, 0), else_=tokens))
        query = select(*columns, func.count(), charged).where(*_filters(account_id, since=day))
        # What used nothing was given back whole: it counts as no request either.
        query = query.where(tokens > 0).group_by(*columns)
        if not without:
            return query
        # One parameter, however many they are: SQLite takes 32,766 of them.
        left_out = elements(self._database.dialect, literal(frozenset(without), NameSet))
        return query.where(UsageRow.request_id.not_in(select(left_out.c.value)))

    async def sums(
        self,
        group_by: Collection[UsageDimension],
        *,
        account_id: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
        since: date | None = None,
        until: date | None = None,
        limit: int = 10_000,
    ) -> list[UsageSum]:
        """Sums over the days `since` to `until`, both included, grouped and ordered by `group_by`.

        `model` is `name`, which is all its versions, or `name@version`. Grouped by feature, a request counts in each
        feature that it used: such groups add up to more than there was.
        """
        features = elements(self._database.dialect, UsageRow.features)
        known = _COLUMNS | {UsageDimension.FEATURE: (features.c.value.label("feature"),)}
        columns = [column for dimension in group_by for column in known[dimension]]
        query = select(*columns, *_counts()).where(*_filters(account_id, key_id, model, since, until))
        if UsageDimension.FEATURE in group_by:
            query = query.join_from(UsageRow, features, true())
        async with self._database.read() as session:
            rows = (await session.execute(query.group_by(*columns).order_by(*columns).limit(limit))).all()
        names = [column.key for column in columns]
        return [_sum_of(dict(zip(names, row, strict=False)), row[len(names) :]) for row in rows]


def _layers(key: str, model: str, version: str, features: frozenset[str]) -> list[tuple[Level, str]]:
    """The layers that one request counts in, as the ledger names them."""
    return [
        (Level.ACCOUNT, ""),
        (Level.KEY, key),
        (Level.MODEL, model),
        (Level.MODEL, f"{model}@{version}"),
        *((Level.FEATURE, feature) for feature in features),
    ]


def _counts() -> list[ColumnElement[int]]:
    computed = (UsageRow.prompt_tokens, UsageRow.cached_tokens, UsageRow.completion_tokens)
    replayed = (UsageRow.prompt_tokens, UsageRow.completion_tokens)
    sums = [
        *(case((_IS_REPLAYED, 0), else_=c) for c in computed),
        *(case((_IS_REPLAYED, c), else_=0) for c in replayed),
    ]
    return [func.count(), *(func.coalesce(func.sum(column), 0) for column in sums)]


def _filters(
    account_id: str | None = None,
    key_id: str | None = None,
    model: str | None = None,
    since: date | None = None,
    until: date | None = None,
) -> list[ColumnElement[bool]]:
    """What is None filters nothing."""
    name, _, version = (model or "").partition("@")
    equal = {"account_id": account_id, "key_id": key_id, "model": name or None, "version": version or None}
    filters = [getattr(UsageRow, column) == value for column, value in equal.items() if value is not None]
    if since is not None:
        filters.append(UsageRow.day >= since)
    if until is not None:
        filters.append(UsageRow.day <= until)
    return filters


def _sum_of(group: dict[str, Any], counts: Sequence[int]) -> UsageSum:
    requests, prompt, cached, completion, replayed_prompt, replayed_completion = map(
        int, counts
    )  # PostgreSQL sums into a Decimal
    return UsageSum(
        account_id=group.get("account_id"),
        key_id=group.get("key_id"),
        model=group.get("model"),
        version=group.get("version"),
        feature=group.get("feature"),
        day=group.get("day"),
        requests=requests,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        replayed_prompt_tokens=replayed_prompt,
        replayed_completion_tokens=replayed_completion,
    )
