"""Durable records: accounts, keys, plans, usage, files, batches, settings. SQLite by default, PostgreSQL by URL."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.store.accounts import Accounts
from server.store.batches import Batches
from server.store.database import Database
from server.store.errors import NameTaken, StoreError
from server.store.files import Files
from server.store.keys import Keys
from server.store.plans import Plans
from server.store.responses import Responses
from server.store.settings import KeptSettings
from server.store.usage import UsageLog

__all__ = ["NameTaken", "Store", "StoreError"]


@dataclass(frozen=True, slots=True)
class Store:
    """The repositories over one database. Any number of processes may open the same one."""

    database: Database
    accounts: Accounts
    keys: Keys
    plans: Plans
    usage: UsageLog
    files: Files
    responses: Responses
    batches: Batches
    settings: KeptSettings

    @classmethod
    async def open(cls, url: str = "", data_dir: Path | None = None) -> Self:
        """Connect and migrate. `url` "" is SQLite at `data_dir`/penstock.db. Raises `StoreError`."""
        database = await Database.open(url, data_dir)
        return cls(
            database,
            accounts=Accounts(database),
            keys=Keys(database),
            plans=Plans(database),
            usage=UsageLog(database),
            files=Files(database),
            responses=Responses(database),
            batches=Batches(database),
            settings=KeptSettings(database),
        )

    async def close(self) -> None:
        await self.database.close()
