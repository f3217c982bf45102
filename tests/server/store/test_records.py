"""Accounts, keys and settings, over each database."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from server.store import NameTaken, Store
from server.store.keys import KeySpec
from server.store.records import Key, KeyKind, utc_now


async def _key(store: Store, key_id: str, account: str = "acme", **fields: object) -> Key:
    owner = await store.accounts.ensure(account)
    return await store.keys.create(key_id, key_id.encode().ljust(32), KeySpec(owner, **fields))  # type: ignore[arg-type]


async def test_an_account_is_found_by_name_and_id(store: Store) -> None:
    overrides = {"account": {"rpm": 5}, "models": {"big@1": {"tpm": 10}}}
    made = await store.accounts.create("acme", "gold", overrides)
    assert await store.accounts.get("acme") == made
    assert await store.accounts.get(made.id) == made
    assert (made.plan, made.overrides, made.disabled) == ("gold", overrides, False)
    assert made.created_at.tzinfo is UTC
    assert await store.accounts.get("other") is None


async def test_a_name_is_taken_once(store: Store) -> None:
    await store.accounts.create("acme")
    with pytest.raises(NameTaken):
        await store.accounts.create("acme")
    assert (await store.accounts.ensure("acme")).name == "acme"


async def test_ensure_makes_one_account_whoever_else_does(store: Store) -> None:
    made = await asyncio.gather(*(store.accounts.ensure("acme") for _ in range(8)))
    assert len({account.id for account in made}) == 1


@pytest.mark.parametrize("name", ["", "acct_1", "a b", "a/b", "-a", "ä", "a" * 65, "a\n"])
async def test_a_bad_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="account's name"):
        await store.accounts.create(name)


async def test_an_account_changes_only_where_told(store: Store) -> None:
    made = await store.accounts.create("acme", overrides={"key": {"rpm": 1}})
    changed = await store.accounts.update(made.id, disabled=True)
    assert changed is not None
    assert (changed.disabled, changed.plan, changed.overrides) == (True, "default", {"key": {"rpm": 1}})
    changed = await store.accounts.update(made.id, plan="gold", overrides={}, disabled=False)
    assert changed is not None
    assert (changed.disabled, changed.plan, changed.overrides) == (False, "gold", {})
    assert await store.accounts.get("acme") == changed
    assert await store.accounts.update(made.id) == changed
    assert await store.accounts.update("acct_0", plan="gold") is None


async def test_pages_of_accounts_hold_each_once(store: Store) -> None:
    names = [f"a{number}" for number in range(7)]
    for name in names:
        await store.accounts.create(name)
    seen: list[str] = []
    after = None
    while page := await store.accounts.list(limit=3, after=after):
        seen += [account.name for account in page]
        after = page[-1].id
    assert seen == names


async def test_names_of_ids(store: Store) -> None:
    made = await store.accounts.create("acme")
    assert await store.accounts.names({made.id, "acct_0"}) == {made.id: "acme"}
    assert await store.accounts.names(set()) == {}


async def test_a_key_is_found_by_id_and_digest(store: Store) -> None:
    expires = datetime(2100, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    scopes: dict[str, Any] = {"models": frozenset({"big", "small@1"}), "features": frozenset[str]()}
    made = await _key(store, "k1", limits={"rpm": 3}, expires_at=expires, name="laptop", **scopes)
    assert await store.keys.get("k1") == made
    assert (made.account_name, made.kind, made.models) == ("acme", KeyKind.API, scopes["models"])
    assert (made.features, made.limits, made.expires_at) == (frozenset(), {"rpm": 3}, expires)
    by_id, by_digest = await store.keys.find_by_id("k1"), await store.keys.find_by_digest(b"k1".ljust(32))
    assert by_id is not None
    assert by_id == by_digest
    assert (by_id.key, by_id.account.name, by_id.digest) == (made, "acme", b"k1".ljust(32))
    assert await store.keys.find_by_id("k2") is None
    assert await store.keys.find_by_digest(b"") is None
    assert "k1 " not in repr(by_id)


async def test_a_time_is_read_back_in_utc(store: Store) -> None:
    local = datetime(2100, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=5)))
    await _key(store, "k1", expires_at=local)
    read = await store.keys.get("k1")
    assert read is not None
    assert read.expires_at == local
    assert read.expires_at.tzinfo is UTC


async def test_no_scope_and_an_empty_scope_differ(store: Store) -> None:
    assert (await _key(store, "k1")).models is None
    assert (await _key(store, "k2", models=frozenset())).models == frozenset()
    assert [key.models for key in await store.keys.list()] == [None, frozenset()]


async def test_a_digest_and_an_id_are_stored_once(store: Store) -> None:
    await _key(store, "k1")
    with pytest.raises(IntegrityError):
        await _key(store, "k1")
    owner = await store.accounts.ensure("acme")
    with pytest.raises(IntegrityError):
        await store.keys.create("k2", b"k1".ljust(32), KeySpec(owner))


async def test_revocation_keeps_its_first_time(store: Store) -> None:
    await _key(store, "k1")
    first = await store.keys.revoke("k1")
    assert first is not None
    assert first.revoked_at is not None
    assert await store.keys.revoke("k1") == first
    assert await store.keys.revoke("k2") is None


async def test_keys_are_listed_by_account_and_page(store: Store) -> None:
    for number in range(4):
        await _key(store, f"k{number}", account="acme" if number % 2 else "other")
    acme = await store.accounts.ensure("acme")
    assert [key.id for key in await store.keys.list(acme.id)] == ["k1", "k3"]
    assert [key.id for key in await store.keys.list(limit=2, after="k1")] == ["k2", "k3"]
    assert [key.id for key in await store.keys.list(acme.id, after="k1")] == ["k3"]


async def test_last_use_never_goes_back(store: Store) -> None:
    await _key(store, "k1")
    await _key(store, "k2")
    now = utc_now()
    await store.keys.touch({"k1": now, "nobody": now})
    await store.keys.touch({"k1": now - timedelta(hours=1), "k2": now})
    assert [key.last_used_at for key in await store.keys.list()] == [now, now]


async def test_settings(store: Store) -> None:
    assert await store.settings.get("epoch") is None
    await store.settings.set("epoch", "1")
    await store.settings.set("epoch", "2")
    assert await store.settings.get("epoch") == "2"
    assert await store.settings.get_or_set("epoch", "3") == "2"
    assert set(await asyncio.gather(*(store.settings.get_or_set("p", str(n)) for n in range(5)))) < set("01234")


async def test_valid_keys_are_neither_revoked_nor_expired(store: Store) -> None:
    now = utc_now()
    await _key(store, "later", expires_at=now + timedelta(days=1))
    await _key(store, "never")
    await _key(store, "over", expires_at=now - timedelta(days=1))
    revoked = await _key(store, "revoked")
    await store.keys.revoke(revoked.id)
    await _key(store, "other", "another")
    assert [key.id for key in await store.keys.valid(revoked.account_id)] == ["later", "never"]
