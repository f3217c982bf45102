"""Accounts: the tenants. They are disabled, never deleted, so that their usage keeps a name."""

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from server.store.database import Database
from server.store.errors import NameTaken
from server.store.records import Account, utc_now
from server.store.tables import AccountRow

DEFAULT_ACCOUNT = "default"
"""Owns the preset API key."""
ADMIN_ACCOUNT = "admin"
"""Owns every admin key. Never disabled, so that nobody locks the administrators out."""
DEFAULT_PLAN_NAME = "default"
_ID_PREFIX = "acct_"
NAME_PATTERN = rf"(?!{_ID_PREFIX})[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}"
"""A name is never the form of an id, so that either may name an account."""


class Accounts:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, name: str, plan: str = DEFAULT_PLAN_NAME, overrides: Mapping[str, Any] | None = None
    ) -> Account:
        """Raises `NameTaken`, and ValueError for a name outside `NAME_PATTERN`."""
        try:
            async with self._database.write() as session:
                return await add_account(session, name, plan, overrides)
        except IntegrityError:
            raise NameTaken(f"account {name} exists already") from None

    async def get(self, name_or_id: str) -> Account | None:
        async with self._database.read() as session:
            return await find_account(session, name_or_id)

    async def ensure(self, name: str, plan: str = DEFAULT_PLAN_NAME) -> Account:
        """The account of this name, created if it is missing, whoever else does the same."""
        if found := await self.get(name):
            return found
        try:
            return await self.create(name, plan)
        except NameTaken:
            found = await self.get(name)
            assert found is not None, "accounts are never deleted"
            return found

    async def names(self, account_ids: Collection[str]) -> dict[str, str]:
        """The name of each id that is an account's."""
        query = select(AccountRow.id, AccountRow.name).where(AccountRow.id.in_(account_ids))
        async with self._database.read() as session:
            return {row.id: row.name for row in await session.execute(query)}

    async def num_with_plan(self, plan: str) -> int:
        query = select(func.count()).select_from(AccountRow).where(AccountRow.plan == plan)
        async with self._database.read() as session:
            return (await session.execute(query)).scalar_one()

    async def list(self, limit: int = 100, after: str | None = None) -> list[Account]:
        """Oldest first; `after` is the id of the last one of the page before."""
        query = select(AccountRow).order_by(AccountRow.created_at, AccountRow.id).limit(limit)
        if after is not None:
            position = select(AccountRow.created_at, AccountRow.id).where(AccountRow.id == after).scalar_subquery()
            query = query.where(tuple_(AccountRow.created_at, AccountRow.id) > position)
        async with self._database.read() as session:
            return [account_of(row) for row in await session.scalars(query)]

    async def update(
        self,
        account_id: str,
        *,
        plan: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        disabled: bool | None = None,
    ) -> Account | None:
        """Change what is not None (`overrides` as a whole). None if there is no such account."""
        changes = {"plan": plan, "overrides": overrides, "disabled": disabled}
        changes = {name: value for name, value in changes.items() if value is not None}
        async with self._database.write() as session:
            if changes:
                await session.execute(update(AccountRow).where(AccountRow.id == account_id).values(changes))
            row = await session.get(AccountRow, account_id, populate_existing=True)
            return None if row is None else account_of(row)


def check_name(name: str) -> None:
    """Raises ValueError for a name outside `NAME_PATTERN`."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise ValueError(
            f"an account's name is 1 to 64 letters, digits, '.', '_' or '-', begins with one of the first two"
            f" and not with {_ID_PREFIX}"
        )


async def find_account(session: AsyncSession, name_or_id: str) -> Account | None:
    column = AccountRow.id if name_or_id.startswith(_ID_PREFIX) else AccountRow.name
    row = await session.scalar(select(AccountRow).where(column == name_or_id))
    return None if row is None else account_of(row)


async def add_account(
    session: AsyncSession, name: str, plan: str = DEFAULT_PLAN_NAME, overrides: Mapping[str, Any] | None = None
) -> Account:
    check_name(name)
    row = AccountRow(
        id=_ID_PREFIX + secrets.token_hex(8),
        name=name,
        plan=plan,
        overrides=dict(overrides) if overrides else None,
        created_at=utc_now(),
        disabled=False,
    )
    session.add(row)
    await session.flush()
    return account_of(row)


def account_of(row: AccountRow) -> Account:
    return Account(
        id=row.id,
        name=row.name,
        plan=row.plan,
        overrides=row.overrides or {},
        created_at=row.created_at,
        disabled=row.disabled,
    )
