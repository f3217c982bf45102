"""Plans that the admin API set. Those of the configuration file are not stored."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select

from server.store.database import Database
from server.store.records import StoredPlan, utc_now
from server.store.tables import PlanRow


class Plans:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[StoredPlan]:
        """By name."""
        async with self._database.read() as session:
            return [_plan_of(row) for row in await session.scalars(select(PlanRow).order_by(PlanRow.name))]

    async def get(self, name: str) -> StoredPlan | None:
        async with self._database.read() as session:
            row = await session.get(PlanRow, name)
            return None if row is None else _plan_of(row)

    async def put(self, name: str, tables: Mapping[str, Any]) -> StoredPlan:
        """Store the plan, in place of the one of that name. `tables` are what `quota.levels.Plan.parse` reads."""
        async with self._database.write() as session:
            return _plan_of(await session.merge(PlanRow(name=name, tables=dict(tables), updated_at=utc_now())))

    async def delete(self, name: str) -> bool:
        """False if there is none of that name."""
        async with self._database.write() as session:
            found = await session.scalar(delete(PlanRow).where(PlanRow.name == name).returning(PlanRow.name))
            return found is not None


def _plan_of(row: PlanRow) -> StoredPlan:
    return StoredPlan(row.name, row.tables, row.updated_at)
