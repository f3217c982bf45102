"""Values that Penstock makes for itself and must find again: the pepper, the ids of the first keys."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from server.store.database import Database
from server.store.dialects import insert_or_ignore
from server.store.tables import SettingRow


class KeptSettings:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> str | None:
        async with self._database.read() as session:
            return await get_setting(session, name)

    async def set(self, name: str, value: str) -> None:
        async with self._database.write() as session:
            await set_setting(session, name, value)

    async def get_or_set(self, name: str, value: str) -> str:
        """What is stored; `value` becomes it if nothing was. All processes that race get the same answer."""
        async with self._database.write() as session:
            row = [{"name": name, "value": value}]
            await insert_or_ignore(session, SettingRow, row, unique="name")
            stored = await get_setting(session, name)
        assert stored is not None
        return stored


async def get_setting(session: AsyncSession, name: str) -> str | None:
    return await session.scalar(select(SettingRow.value).where(SettingRow.name == name))


async def set_setting(session: AsyncSession, name: str, value: str) -> None:
    await session.merge(SettingRow(name=name, value=value))
