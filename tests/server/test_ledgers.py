"""Which Redis a server starts on, and which one a gateway starts on again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quota.ledger import LedgerUnavailable
from server.ledgers import check_shared, open_shared
from server.settings import Settings, load
from server.settings_layers import SettingsError
from server.store import Store
from tests.quota.redis_server import RedisServer


def settings(folder: Path, redis: RedisServer) -> Settings:
    (folder / "penstock.toml").write_text('[[models]]\nname = "m"\nengine = "fake"\n')
    return load(folder / "penstock.toml", {"redis_url": redis.url, "data_dir": str(folder)}, {})


async def test_one_that_does_not_answer(tmp_path: Path, mortal: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    store, wanted = await Store.open(data_dir=tmp_path), settings(tmp_path, mortal)
    await check_shared(wanted, store)
    mortal.kill()
    with pytest.raises(SettingsError, match=r"server\.redis_url: .*no answer"):
        await check_shared(wanted, store)
    ledger = await open_shared(wanted, store, lambda: asyncio.sleep(0), must_answer=False)
    assert "started without the shared ledger" in caplog.text
    with pytest.raises(LedgerUnavailable):
        await ledger.peek("acme", ())
    await ledger.close()
    await store.close()


async def test_one_that_evicts(tmp_path: Path, mortal: RedisServer) -> None:
    store, wanted = await Store.open(data_dir=tmp_path), settings(tmp_path, mortal)
    mortal.configure("maxmemory", "100mb")
    mortal.configure("maxmemory-policy", "allkeys-lru")
    for must_answer in (True, False):
        with pytest.raises(SettingsError, match="noeviction"):
            await open_shared(wanted, store, lambda: asyncio.sleep(0), must_answer=must_answer)
    await store.close()
