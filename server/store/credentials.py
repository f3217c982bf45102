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
from server.store.keys import KeySpec, add_key, revoke_key
from server.store.records import Account, Key, KeyKind
from server.store.settings import get_setting, set_setting
from server.store.tables import KeyRow

_LOCK = 7_368_002
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

    A preset text takes the place of the first key before it, preset or generated, which is revoked. Without a text
    a first key is generated once; a later start leaves it alone. A preset that an administrator revoked stays
    revoked. Raises `StoreError` (one line, without the key).
    """
    texts = {KeyKind.API: api_key or None, KeyKind.ADMIN: admin_key or None}
    for kind, text in texts.items():
        _check_preset(_VARIABLES[kind], text)
    if api_key and api_key == admin_key:
        raise StoreError("PENSTOCK_ADMIN_KEY: expected another key than PENSTOCK_API_KEY")
    async with store.database.write() as session:
        await store.database.exclusive(session, _LOCK)
        generated = {kind: await _ensure_first(session, pepper, kind, text) for kind, text in texts.items()}
    return GeneratedKeys(generated[KeyKind.API], generated[KeyKind.ADMIN])


def _check_preset(variable: str, text: str | None) -> None:
    if text is None or keys.is_foreign(text) or keys.parse(text) is not None:
        return
    shortest = keys.MIN_PRESET_LENGTH
    raise StoreError(
        f"{variable}: expected at least {shortest} characters, visible ASCII only"
        f" (one that begins {keys.PREFIX}- must be a whole key)"
    )


async def _ensure_first(session: AsyncSession, pepper: bytes, kind: KeyKind, text: str | None) -> str | None:
    """Make the first key of this kind what it should be; answers its text if it was generated now."""
    setting = f"first_{kind}_key"
    current = await get_setting(session, setting)
    owner = await _owner(session, kind)
    if text is None:
        if current is not None:
            return None
        new = keys.generate()
        await _add_first(session, new.id, keys.digest(pepper, new.text), kind, owner)
        await set_setting(session, setting, new.id)
        return new.text
    key_id = await _ensure_preset(session, keys.digest(pepper, text), text, kind, owner)
    if current is not None and current != key_id:
        await revoke_key(session, current)
    await set_setting(session, setting, key_id)
    return None


async def _ensure_preset(session: AsyncSession, digest: bytes, text: str, kind: KeyKind, owner: Account) -> str:
    """The id of the key with this text, stored now or before."""
    row = await session.scalar(select(KeyRow).where(KeyRow.digest == digest))
    if row is None:
        parsed = keys.parse(text)
        key_id = parsed.id if parsed else keys.new_id()
        await _add_first(session, key_id, digest, kind, owner)
        return key_id
    if row.kind != kind or row.account_id != owner.id:
        raise StoreError(f"{_VARIABLES[kind]}: expected a key that has no other use: this one is stored as another's")
    return row.id


async def _add_first(session: AsyncSession, key_id: str, digest: bytes, kind: KeyKind, owner: Account) -> None:
    spec = KeySpec(owner, kind, name=f"first {kind} key", created_by="start")
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
