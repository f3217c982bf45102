"""`penstock quota`: what a person reads, with each ledger, and mistakes in one line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quota.levels import Level, Plan
from quota.redis import RedisLedger
from server.cli import app
from server.cli_quota import short, wait
from server.ledgers import open_shared
from server.settings import load
from server.store import Store
from server.store.accounts import ADMIN_ACCOUNT
from server.store.credentials import issue_key
from server.store.keys import KeySpec
from server.store.records import UsageRecord, utc_now
from tests.quota.redis_server import WHY_NOT, RedisServer, is_installed

MODEL = "an-organisation/a-model-with-a-long-name"
TABLES: dict[str, Any] = {
    "account": {"rpm": 20, "tokens_per_day": 1000, "tokens_per_month": 5_000_000, "shadow": ["tokens_per_month"]},
    "key": {"concurrent": 4},
    "models": {MODEL: {"requests_per_day": 10}},
    "features": {"structured_output": {"tokens_per_day": 100_000}},
}
RECORD = UsageRecord(
    request_id="r1",
    account_id="",
    key_id="k",
    model=MODEL,
    version="2024-11",
    endpoint="/v1/chat/completions",
    features=frozenset({"chat"}),
    prompt_tokens=600,
    cached_tokens=100,
    completion_tokens=250,
    started_at=utc_now(),
    queue_ms=1,
    first_token_ms=1,
    total_ms=1,
    outcome="stop",
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit status, output and errors of `penstock quota show` on 80 columns."""
    for name in ("PENSTOCK_DATA_DIR", "PENSTOCK_CONFIG", "PENSTOCK_DATABASE_URL", "PENSTOCK_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def show(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["quota", "show", *words, "--data-dir", str(tmp_path)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return show


def prepare(folder: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await Store.open(data_dir=folder)
        await work(store)
        await store.close()

    asyncio.run(main())


async def acme(store: Store) -> None:
    """An account of a stored plan, with a key, and a request today."""
    await store.plans.put("silver", TABLES)
    account = await store.accounts.create("acme", "silver")
    issued = await issue_key(store, b"pepper", KeySpec(account, limits={"concurrent": 2}))
    await store.usage.add([replace(RECORD, account_id=account.id, key_id=issued.key.id, started_at=utc_now())])


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_embedded_ledgers_budgets(run: Run, tmp_path: Path) -> None:
    prepare(tmp_path, acme)
    status, text, _ = run("acme")
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    shown = rows(text)
    assert ["account", "rpm", "20", "-", "-", "-", "-"] in shown
    day = next(row for row in shown if row[:2] == ["account", "tokens_per_day"])
    assert day[2:7] == ["1000", "850", "150", "85", "!"]
    month = next(row for row in shown if row[:2] == ["account", "tokens_per_month"])
    assert month[2:6] == ["5M", "850", "5M", "0"]
    assert shown[shown.index(month) + 1] == ["(shadow)"]
    assert any(row[0] == "key" and row[2:5] == ["concurrent", "2", "-"] for row in shown if len(row) > 4)
    assert any(row[0] == "feature" and row[3:6] == ["100k", "0", "100k"] for row in shown if len(row) > 4)
    assert "- is counted in the server's memory: GET /admin/v1/accounts/acme/limits" in text
    assert re.search(r" 1 +600 +100 +250\n", text)


def test_an_account_without_limits_or_usage(run: Run, tmp_path: Path) -> None:
    async def unlimited(store: Store) -> None:
        await store.plans.put("default", {})
        await store.accounts.create("acme")

    prepare(tmp_path, unlimited)
    _, text, _ = run("acme")
    assert "Nothing is limited." in text
    assert "No usage this month." in text
    assert "memory" not in text


def test_names_that_look_like_markup(run: Run, tmp_path: Path) -> None:
    async def odd(store: Store) -> None:
        await store.plans.put("default", {"models": {"[red]m": {"requests_per_day": 1}}})
        await store.accounts.create("acme")

    prepare(tmp_path, odd)
    assert "[red]m" in run("acme")[1]


def test_an_account_that_is_not_there(run: Run) -> None:
    assert run("nobody") == (2, "", "penstock: no account is called nobody\n")


def test_a_redis_that_is_not_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:1")
    prepare(tmp_path, acme)
    status, _, error = run("acme")
    assert status == 2
    assert error.startswith("penstock: server.redis_url: ")
    assert error.count("\n") == 1


@pytest.mark.skipif(not is_installed(), reason=WHY_NOT)
def test_the_shared_ledgers_live_counters(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    monkeypatch.setenv("PENSTOCK_REDIS_URL", redis.url)

    async def with_running_request(store: Store) -> None:
        await acme(store)
        account = await store.accounts.get("acme")
        assert account is not None
        (key,) = await store.keys.valid(account.id)
        settings = load(None, {}, {"PENSTOCK_REDIS_URL": redis.url, "HOME": str(tmp_path)})

        async def flush() -> None:
            pass

        ledger: RedisLedger = await open_shared(settings, store, flush)
        layers = Plan.parse("silver", TABLES).layers(key.id, MODEL, "2024-11", ())
        assert (await ledger.reserve("r2", account.id, layers, 100)).admitted
        await ledger.close()

    try:
        prepare(tmp_path, with_running_request)
        status, text, error = run("acme")
    finally:
        redis.kill()
    assert (status, error) == (0, "")
    shown = rows(text)
    assert any(row[0] == Level.KEY and row[2:5] == ["concurrent", "2", "1"] for row in shown if len(row) > 4)
    day = next(row for row in shown if row[:2] == ["account", "tokens_per_day"])
    assert day[2:7] == ["1000", "950", "50", "95", "!"]  # what is written, and what runs
    assert "memory" not in text


def test_administrators_keys_are_no_hindrance(run: Run, tmp_path: Path) -> None:
    async def admin(store: Store) -> None:
        await store.accounts.ensure(ADMIN_ACCOUNT)

    prepare(tmp_path, admin)
    assert run(ADMIN_ACCOUNT)[0] == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9999"), (10_000, "10k"), (12_345, "12.35k"), (5_000_000, "5M"), (10**15, "1000T")],
)
def test_short_numbers(number: int, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "-"),
        (0, "now"),
        (1, "1s"),
        (59_000, "59s"),
        (60_000, "1m 0s"),
        (86_399_001, "1d 0h"),
        (86_399_000, "23h 59m"),
        (30 * 86_400_000, "30d 0h"),
    ],
)
def test_waits(milliseconds: int | None, text: str) -> None:
    assert wait(milliseconds) == text
