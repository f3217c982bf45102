"""Making keys: the pepper, issuing one, and the first two that every Penstock starts with."""

import secrets
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from server import keys
from server.store import Store
from server.store.accounts import ADMIN_ACCOUNT, DEFAULT_ACCOUNT, add_account, find_account
from server.store.errors import StoreError
from server.store.keys import START, KeySpec, add_key
from server.store.records import Account, Key, KeyKind, utc_now
from server.store.settings import get_setting, set_setting
from server.store.tables import KeyRow

_LOCK = 7_368_002
_PRESET = "preset"  # in `created_by`: set by the operator's variable, not generated
_VARIABLES = {KeyKind.API: "PENSTOCK_API_KEY", KeyKind.ADMIN: "PENSTOCK_ADMIN_KEY"}
_OWNERS = {KeyKind.API: DEFAULT_ACCOUNT, KeyKind.ADMIN: ADMIN_ACCOUNT}


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key with its text, which is shown now or never."""

    key: Key
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GeneratedKeys:
    """The texts of the first keys that this start generated; None where nothing was."""

    api_key: str | None = field(repr=False)
    admin_key: str | None = field(repr=False)


async def load_pepper(store: Store, configured: str = "") -> bytes:
    """The secret that digests depend on: `configured`, else the database's own, made at the first start."""
    if configured:
        return configured.encode("utf-8", "surrogateescape")
    return bytes.fromhex(await store.settings.get_or_set("key_pepper", secrets.token_hex(32)))


async def issue_key(store: Store, pepper: bytes, spec: KeySpec) -> IssuedKey:
    new = keys.generate()
    return IssuedKey(await store.keys.create(new.id, keys.digest(pepper, new.text), spec), new.text)


async def ensure_presets(
    store: Store, pepper: bytes, api_key: str | None = None, admin_key: str | None = None
) -> GeneratedKeys:
    """See to it that the first API key and the first admin key exist, at every start.

    A preset text (checked by `server.settings`) takes the place of the preset before it, which is revoked until it
    comes back; generated keys stay valid. Without a text a first key is generated once; a later start leaves it
    alone. Raises `StoreError` (one line, without the key), for a preset that an administrator revoked too.
    """
    texts = {KeyKind.API: api_key or None, KeyKind.ADMIN: admin_key or None}
    async with store.database.write() as session:
        await store.database.exclusive(session, _LOCK)
        generated = {kind: await _ensure_first(session, pepper, kind, text) for kind, text in texts.items()}
    return GeneratedKeys(generated[KeyKind.API], generated[KeyKind.ADMIN])


async def _ensure_first(session: AsyncSession, pepper: bytes, kind: KeyKind, text: str | None) -> str | None:
    """Make the first key of this kind what it should be; answers its text if it was generated now."""
    setting = f"first_{kind}_key"
    current = await get_setting(session, setting)
    owner = await _owner(session, kind)
    if text is None:
        return None if current is not None else await _generate(session, pepper, setting, kind, owner)
    key_id = await _ensure_preset(session, keys.digest(pepper, text), text, kind, owner)
    if current is not None and current != key_id:
        await _replace(session, current)
    await set_setting(session, setting, key_id)
    return None


async def _generate(session: AsyncSession, pepper: bytes, setting: str, kind: KeyKind, owner: Account) -> str:
    new = keys.generate()
    await _add_first(session, new.id, keys.digest(pepper, new.text), kind, owner, START)
    await set_setting(session, setting, new.id)
    return new.text


async def _ensure_preset(session: AsyncSession, digest: bytes, text: str, kind: KeyKind, owner: Account) -> str:
    """The id of the key with this text, stored now or before, and valid."""
    row = await session.scalar(select(KeyRow).where(KeyRow.digest == digest))
    if row is None:
        parsed = keys.parse(text)
        key_id = parsed.id if parsed else keys.new_id()
        await _add_first(session, key_id, digest, kind, owner, _PRESET)
        return key_id
    variable = _VARIABLES[kind]
    if row.kind != kind or row.account_id != owner.id:
        raise StoreError(f"{variable}: expected a key that has no other use: this one is stored as another's")
    if row.revoked_at is not None and row.revoked_by != START:
        raise StoreError(f"{variable}: the key {row.id} was revoked for good: set another one, or none")
    if row.expires_at is not None and row.expires_at <= utc_now():
        raise StoreError(f"{variable}: the key {row.id} has expired: set another one, or none")
    row.revoked_at = row.revoked_by = None
    return row.id


async def _replace(session: AsyncSession, key_id: str) -> None:
    """Revoke a preset whose variable says another one now. Somebody may hold a key that was generated."""
    row = await session.get(KeyRow, key_id)
    if row is not None and row.created_by == _PRESET and row.revoked_at is None:
        row.revoked_at, row.revoked_by = utc_now(), START


async def _add_first(
    session: AsyncSession, key_id: str, digest: bytes, kind: KeyKind, owner: Account, created_by: str
) -> None:
    spec = KeySpec(owner, kind, name=f"first {kind} key", created_by=created_by)
    try:
        await add_key(session, key_id, digest, spec)
    except IntegrityError:
        # only a preset of our form can meet an id in use: the same key under another pepper
        raise StoreError(
            f"{_VARIABLES[kind]}: a key of the same id is stored with another digest: was the pepper changed?"
        ) from None


async def _owner(session: AsyncSession, kind: KeyKind) -> Account:
    name = _OWNERS[kind]
    return await find_account(session, name) or await add_account(session, name)
