"""Keys as they are stored: their digest, their scopes, their life. The text of a key never comes here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Table, bindparam, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from server.store.accounts import ADMIN_ACCOUNT, account_of
from server.store.database import Database
from server.store.errors import WrongKeySpec
from server.store.records import Account, Credential, Key, KeyKind, utc_now
from server.store.tables import AccountRow, KeyRow

START = "start"
"""In `created_by` and `revoked_by`: a start of Penstock did it, no administrator."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What a key is made with. None in `models` and `features`: all of them; in `expires_at`: never.

    Raises `WrongKeySpec`: admin keys belong to the account `admin`, and only they, and have no limits.
    """

    account: Account
    kind: KeyKind = KeyKind.API
    name: str = ""
    models: frozenset[str] | None = None
    features: frozenset[str] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    expires_at: datetime | None = None
    created_by: str = "cli"

    def __post_init__(self) -> None:
        is_admin = self.kind is KeyKind.ADMIN
        if is_admin and self.limits:
            raise WrongKeySpec("limits", "An admin key runs no inference: it has no limits.")
        if is_admin != (self.account.name == ADMIN_ACCOUNT):
            raise WrongKeySpec("account", f"Admin keys, and no others, belong to the account {ADMIN_ACCOUNT}.")


class Keys:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, key_id: str, digest: bytes, spec: KeySpec) -> Key:
        async with self._database.write() as session:
            return await add_key(session, key_id, digest, spec)

    async def get(self, key_id: str) -> Key | None:
        async with self._database.read() as session:
            row = (await session.execute(_with_accounts().where(KeyRow.id == key_id))).one_or_none()
        return None if row is None else key_of(*row)

    async def find_by_id(self, key_id: str) -> Credential | None:
        return await self._credential(_with_accounts().where(KeyRow.id == key_id))

    async def find_by_digest(self, digest: bytes) -> Credential | None:
        return await self._credential(_with_accounts().where(KeyRow.digest == digest))

    async def valid(self, account_id: str) -> list[Key]:
        """All of an account's keys that are neither revoked nor expired, oldest first."""
        unexpired = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > utc_now())
        query = _with_accounts().where(KeyRow.account_id == account_id, KeyRow.revoked_at.is_(None), unexpired)
        async with self._database.read() as session:
            return [key_of(*row) for row in await session.execute(query.order_by(KeyRow.created_at, KeyRow.id))]

    async def list(self, account_id: str | None = None, limit: int = 100, after: str | None = None) -> list[Key]:
        """Oldest first, revoked ones included; `after` is the id of the last one of the page before."""
        query = _with_accounts().order_by(KeyRow.created_at, KeyRow.id).limit(limit)
        if account_id is not None:
            query = query.where(KeyRow.account_id == account_id)
        if after is not None:
            position = select(KeyRow.created_at, KeyRow.id).where(KeyRow.id == after).scalar_subquery()
            query = query.where(tuple_(KeyRow.created_at, KeyRow.id) > position)
        async with self._database.read() as session:
            return [key_of(*row) for row in await session.execute(query)]

    async def revoke(self, key_id: str, by: str = "cli") -> Key | None:
        """For good; a repeat keeps the first time. `by` is a key's id or "cli". None if there is no such key."""
        async with self._database.write() as session:
            return await revoke_key(session, key_id, by)

    async def touch(self, used: Mapping[str, datetime]) -> None:
        """Note when keys were last used. A time before the one noted changes nothing."""
        table = KeyRow.__table__
        assert isinstance(table, Table)
        older = or_(table.c.last_used_at.is_(None), table.c.last_used_at < bindparam("moment"))
        query = update(table).where(table.c.id == bindparam("key"), older)
        query = query.values(last_used_at=bindparam("moment"))
        # in one order everywhere, so that gateways can't deadlock
        rows = [{"key": key_id, "moment": moment} for key_id, moment in sorted(used.items())]
        async with self._database.write() as session:
            await (await session.connection()).execute(query, rows)

    async def _credential(self, query: Select[KeyRow, AccountRow]) -> Credential | None:
        async with self._database.read() as session:
            row = (await session.execute(query)).one_or_none()
        return None if row is None else Credential(key_of(*row), account_of(row[1]), row[0].digest)


async def add_key(session: AsyncSession, key_id: str, digest: bytes, spec: KeySpec) -> Key:
    account = await session.get_one(AccountRow, spec.account.id)
    row = KeyRow(
        id=key_id,
        digest=digest,
        account_id=spec.account.id,
        kind=spec.kind.value,
        name=spec.name,
        models=spec.models,
        features=spec.features,
        limits=dict(spec.limits) or None,
        created_by=spec.created_by,
        created_at=utc_now(),
        expires_at=spec.expires_at,
    )
    session.add(row)
    await session.flush()
    return key_of(row, account)


async def revoke_key(session: AsyncSession, key_id: str, by: str) -> Key | None:
    """An administrator's revocation stands over a start's, which the next start might take back."""
    row = (await session.execute(_with_accounts().where(KeyRow.id == key_id))).one_or_none()
    if row is None:
        return None
    key, account = row
    if key.revoked_at is None or key.revoked_by == START:
        key.revoked_at, key.revoked_by = key.revoked_at or utc_now(), by
    return key_of(key, account)


def key_of(row: KeyRow, account: AccountRow) -> Key:
    return Key(
        id=row.id,
        account_id=row.account_id,
        account_name=account.name,
        kind=KeyKind(row.kind),
        name=row.name,
        models=row.models,
        features=row.features,
        limits=row.limits or {},
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


def _with_accounts() -> Select[KeyRow, AccountRow]:
    return select(KeyRow, AccountRow).join(AccountRow, KeyRow.account_id == AccountRow.id)
