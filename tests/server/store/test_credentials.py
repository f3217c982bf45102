import asyncio
import logging
from datetime import timedelta

import pytest

from server import keys
from server.auth import Authenticator
from server.store import Store, StoreError
from server.store.credentials import GeneratedKeys, ensure_presets, issue_key, load_pepper
from server.store.errors import WrongKeySpec
from server.store.keys import KeySpec
from server.store.records import Credential, KeyKind, utc_now

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


async def test_a_preset_leaves_a_generated_key_valid(store: Store) -> None:
    """Users hold it already."""
    first = await ensure_presets(store, PEPPER)
    await ensure_presets(store, PEPPER, API, ADMIN)
    await ensure_presets(store, PEPPER, first.api_key, ADMIN)
    await ensure_presets(store, PEPPER, "preset-api-key-0002", ADMIN)
    assert await _live(store, first.api_key or "")
    assert await _live(store, first.admin_key or "")
    assert not await _live(store, API)


async def test_a_key_made_by_hand_may_be_preset_and_stays_valid(store: Store) -> None:
    issued = await issue_key(store, PEPPER, KeySpec(await store.accounts.ensure("default")))
    await ensure_presets(store, PEPPER, issued.text)
    await ensure_presets(store, PEPPER, API)
    assert await _live(store, issued.text)


async def test_a_preset_that_returns_is_valid_again(store: Store) -> None:
    """`make serve`, once with another PENSTOCK_API_KEY, and again without it."""
    for preset, away in ((API, None), ("preset-api-key-0002", API), (API, "preset-api-key-0002")):
        await ensure_presets(store, PEPPER, preset, ADMIN)
        assert await _live(store, preset)
        assert away is None or not await _live(store, away)


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


async def _check_refused(store: Store, text: str, why: str) -> None:
    with pytest.raises(StoreError, match=f"^PENSTOCK_API_KEY: .*{why}") as caught:
        await ensure_presets(store, PEPPER, text)
    assert text not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("replaced_before", [False, True])
async def test_a_preset_that_an_administrator_revoked_stays_revoked(store: Store, replaced_before: bool) -> None:
    await ensure_presets(store, PEPPER, API)
    found = await _find(store, API)
    assert found is not None
    if replaced_before:
        await ensure_presets(store, PEPPER, "preset-api-key-0002")
    await store.keys.revoke(found.key.id)
    await _check_refused(store, API, "was revoked for good")
    assert not await _live(store, API)


async def test_a_start_does_not_hide_an_administrator_s_revocation(store: Store) -> None:
    await ensure_presets(store, PEPPER, API)
    found = await _find(store, API)
    assert found is not None
    await store.keys.revoke(found.key.id)
    await ensure_presets(store, PEPPER, "preset-api-key-0002")
    await _check_refused(store, API, "was revoked for good")


async def test_an_expired_preset_is_told(store: Store) -> None:
    spec = KeySpec(await store.accounts.ensure("default"), expires_at=utc_now() - timedelta(seconds=1))
    issued = await issue_key(store, PEPPER, spec)
    await _check_refused(store, issued.text, "has expired")


@pytest.mark.parametrize(
    ("account", "kind", "limits", "field"),
    [
        ("acme", KeyKind.ADMIN, {}, "account"),
        ("admin", KeyKind.API, {}, "account"),
        ("admin", KeyKind.ADMIN, {"rpm": 5}, "limits"),
    ],
)
async def test_admin_keys_belong_to_one_account_and_have_no_limits(
    store: Store, account: str, kind: KeyKind, limits: dict[str, int], field: str
) -> None:
    owner = await store.accounts.ensure(account)
    with pytest.raises(WrongKeySpec) as caught:
        KeySpec(owner, kind, limits=limits)
    assert caught.value.field == field


async def test_gateways_that_start_together_agree(store: Store) -> None:
    made = await asyncio.gather(*(ensure_presets(store, PEPPER) for _ in range(4)))
    assert sum(keys.api_key is not None for keys in made) == 1
    assert len(await store.keys.list()) == 2


@pytest.mark.parametrize("text", ["sk-pen-my-own-key-123456", "words with spaces", "schlüssel-mit-umlaut"])
async def test_a_preset_has_any_form(store: Store, text: str) -> None:
    await ensure_presets(store, PEPPER, text)
    authenticator = Authenticator(store.keys, PEPPER)
    assert (await authenticator.authenticate(text)).account_name == "default"


async def test_one_text_can_not_be_both_keys(store: Store) -> None:
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
