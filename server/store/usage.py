"""What was used: one row a request, written in batches, and its sums."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute

from quota.levels import Level
from server.store.database import Database
from server.store.dialects import insert_or_ignore
from server.store.records import UsageDimension, UsageRecord, UsageSum, UsageTotal
from server.store.tables import UsageRow

_COLUMNS: dict[UsageDimension, tuple[InstrumentedAttribute[Any], ...]] = {
    UsageDimension.ACCOUNT: (UsageRow.account_id,),
    UsageDimension.KEY: (UsageRow.key_id,),
    UsageDimension.MODEL: (UsageRow.model, UsageRow.version),
    UsageDimension.DAY: (UsageRow.day,),
}


class UsageLog:
    """The table itself. The hot path records through `UsageWriter`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, records: Sequence[UsageRecord]) -> None:
        """Write them in one transaction. A request id that is stored already is left as it is."""
        rows = [asdict(record) | {"day": record.day} for record in records]
        async with self._database.write() as session:
            await insert_or_ignore(session, UsageRow, rows, unique="request_id")

    async def totals_since(self, day: date) -> list[UsageTotal]:
        """Usage of each layer on each day from `day` on: what a ledger's budgets are rebuilt from."""
        dimensions = (UsageRow.account_id, UsageRow.key_id, UsageRow.model, UsageRow.version, UsageRow.features)
        columns = (*dimensions, UsageRow.day)
        tokens = func.sum(UsageRow.prompt_tokens + UsageRow.completion_tokens)
        # What used nothing was given back whole: it counts as no request either.
        used_any = UsageRow.prompt_tokens + UsageRow.completion_tokens > 0
        query = select(*columns, func.count(), tokens).where(UsageRow.day >= day, used_any).group_by(*columns)
        sums: dict[tuple[str, Level, str, date], tuple[int, int]] = {}
        async with self._database.read() as session:
            for account, key, model, version, features, when, requests, used in await session.execute(query):
                for level, name in _layers(key, model, version, features):
                    before = sums.get((account, level, name, when), (0, 0))
                    sums[account, level, name, when] = (before[0] + requests, before[1] + int(used))
        return [UsageTotal(*group, *counts) for group, counts in sorted(sums.items())]

    async def sums(
        self,
        group_by: Collection[UsageDimension],
        *,
        account_id: str | None = None,
        since: date | None = None,
        until: date | None = None,
        limit: int = 10_000,
    ) -> list[UsageSum]:
        """Sums over the days `since` to `until`, both included, grouped and ordered by `group_by`."""
        columns = [column for dimension in group_by for column in _COLUMNS[dimension]]
        query = (select(*columns, *_counts()).where(*_filters(account_id, since, until)).group_by(*columns)).order_by(
            *columns
        )
        names = [column.key for column in columns]
        async with self._database.read() as session:
            rows = (await session.execute(query.limit(limit))).all()
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
    tokens = (UsageRow.prompt_tokens, UsageRow.cached_tokens, UsageRow.completion_tokens)
    return [func.count(), *(func.coalesce(func.sum(column), 0) for column in tokens)]


def _filters(account_id: str | None, since: date | None, until: date | None) -> list[ColumnElement[bool]]:
    filters = []
    if account_id is not None:
        filters.append(UsageRow.account_id == account_id)
    if since is not None:
        filters.append(UsageRow.day >= since)
    if until is not None:
        filters.append(UsageRow.day <= until)
    return filters


def _sum_of(group: dict[str, Any], counts: Sequence[int]) -> UsageSum:
    requests, prompt, cached, completion = map(int, counts)  # PostgreSQL sums into a Decimal
    return UsageSum(
        account_id=group.get("account_id"),
        key_id=group.get("key_id"),
        model=group.get("model"),
        version=group.get("version"),
        day=group.get("day"),
        requests=requests,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
    )
