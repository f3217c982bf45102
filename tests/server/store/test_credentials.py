import asyncio
import logging

import pytest

from server import keys
from server.store import Store, StoreError
from server.store.credentials import GeneratedKeys, ensure_presets, issue_key, load_pepper
from server.store.keys import KeySpec
from server.store.records import Credential, KeyKind

PEPPER = b"pepper"
API = "preset-api-key-0001"
ADMIN = "preset-admin-key-0001"


async def _find(store: Store, text: str) -> Credential | None:
    return await store.keys.find_by_digest(keys.digest(PEPPER, text))


async def _live(store: Store, text: str) -> bool:
    found = await _find(store, text)
    return found is not None and found.key.revoked_at is None


async def test_the_pepper_is_made_once(store: Store) -> None:
    made = {await load_pepper(store) for _ in range(2)}
    assert len(made) == 1
    assert len(made.pop()) == 32


async def test_a_configured_pepper_is_not_stored(store: Store) -> None:
    assert await load_pepper(store, "from outside") == b"from outside"
    assert await store.settings.get("key_pepper") is None


async def test_an_issued_key_is_found_and_its_text_is_nowhere(store: Store) -> None:
    account = await store.accounts.create("acme")
    issued = await issue_key(store, PEPPER, KeySpec(account))
    found = await store.keys.find_by_id(issued.key.id)
    assert found is not None
    assert found.digest == keys.digest(PEPPER, issued.text)
    assert keys.parse(issued.text) == keys.ParsedKey(issued.key.id)
    assert issued.text not in repr(issued)


async def test_the_first_keys_are_generated_once(store: Store) -> None:
    first = await ensure_presets(store, PEPPER)
    assert first.api_key is not None
    assert first.admin_key is not None
    assert await ensure_presets(store, PEPPER) == GeneratedKeys(None, None)
    api, admin = await _find(store, first.api_key), await _find(store, first.admin_key)
    assert api is not None
    assert admin is not None
    assert (api.key.kind, api.account.name, api.account.plan) == (KeyKind.API, "default", "default")
    assert (admin.key.kind, admin.account.name) == (KeyKind.ADMIN, "admin")
    assert first.api_key not in repr(first)


async def test_a_revoked_first_key_is_not_generated_again(store: Store) -> None:
    first = await ensure_presets(store, PEPPER)
    assert first.api_key is not None
    found = await _find(store, first.api_key)
    assert found is not None
    await store.keys.revoke(found.key.id)
    assert await ensure_presets(store, PEPPER) == GeneratedKeys(None, None)
    assert not await _live(store, first.api_key)


async def test_presets_stay_the_same_over_starts(store: Store) -> None:
    for _ in range(3):
        assert await ensure_presets(store, PEPPER, API, ADMIN) == GeneratedKeys(None, None)
    assert len(await store.keys.list()) == 2
    assert await _live(store, API)
    assert await _live(store, ADMIN)


async def test_a_changed_preset_replaces_the_one_before(store: Store) -> None:
    await ensure_presets(store, PEPPER, API, ADMIN)
    await ensure_presets(store, PEPPER, "preset-api-key-0002", ADMIN)
    assert not await _live(store, API)
    assert await _live(store, "preset-api-key-0002")
    assert await _live(store, ADMIN)


async def test_a_preset_replaces_a_generated_key(store: Store) -> None:
    first = await ensure_presets(store, PEPPER)
    assert first.admin_key is not None
    await ensure_presets(store, PEPPER, None, ADMIN)
    assert not await _live(store, first.admin_key)
    assert await _live(store, first.api_key or "")


async def test_a_generated_key_may_be_preset_later(store: Store) -> None:
    first = await ensure_presets(store, PEPPER)
    await ensure_presets(store, PEPPER, first.api_key, first.admin_key)
    assert await _live(store, first.api_key or "")
    assert len(await store.keys.list()) == 2


async def test_a_preset_of_our_form_keeps_its_id(store: Store) -> None:
    text = keys.generate().text
    await ensure_presets(store, PEPPER, text)
    parsed = keys.parse(text)
    assert parsed is not None
    assert await store.keys.find_by_id(parsed.id) == await _find(store, text)


async def test_a_revoked_preset_stays_revoked(store: Store) -> None:
    await ensure_presets(store, PEPPER, API)
    found = await _find(store, API)
    assert found is not None
    await store.keys.revoke(found.key.id)
    await ensure_presets(store, PEPPER, API)
    assert not await _live(store, API)


async def test_gateways_that_start_together_agree(store: Store) -> None:
    made = await asyncio.gather(*(ensure_presets(store, PEPPER) for _ in range(4)))
    assert sum(keys.api_key is not None for keys in made) == 1
    assert len(await store.keys.list()) == 2


@pytest.mark.parametrize(
    "bad", ["short", "fifteen-letters", "with a space in it", "schlüssel-mit-umlaut", "sk-pen-" + "x" * 20]
)
async def test_a_bad_preset_is_one_line_without_the_key(store: Store, bad: str) -> None:
    with pytest.raises(StoreError, match="PENSTOCK_ADMIN_KEY: expected at least 16") as caught:
        await ensure_presets(store, PEPPER, API, bad)
    assert bad not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert await store.keys.list() == []


async def test_one_text_can_not_be_both_keys(store: Store) -> None:
    with pytest.raises(StoreError, match="PENSTOCK_ADMIN_KEY"):
        await ensure_presets(store, PEPPER, API, API)
    await ensure_presets(store, PEPPER, API, ADMIN)
    with pytest.raises(StoreError, match="PENSTOCK_API_KEY"):
        await ensure_presets(store, PEPPER, ADMIN)


async def test_a_changed_pepper_is_told(store: Store) -> None:
    text = keys.generate().text
    await ensure_presets(store, PEPPER, text, ADMIN)
    with pytest.raises(StoreError, match="pepper"):
        await ensure_presets(store, b"another", text, ADMIN)


async def test_no_key_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    first = await ensure_presets(store, PEPPER)
    await ensure_presets(store, PEPPER, API, ADMIN)
    for text in (first.api_key, first.admin_key, API, ADMIN):
        assert text is not None
        assert text not in caplog.text
