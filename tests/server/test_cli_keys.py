"""`penstock keys`: whose keys it makes, and mistakes in one line."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from server.cli import app
from server.store import Store
from server.store.keys import Keys
from server.store.records import Key

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("PENSTOCK_DATA_DIR", "PENSTOCK_CONFIG", "PENSTOCK_DATABASE_URL", "PENSTOCK_KEY_PEPPER"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: CliRunner().invoke(app, ["keys", *words, "--data-dir", str(tmp_path)])


def one_line(result: Result) -> str:
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr.startswith("penstock: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert not result.stdout
    return result.stderr.removeprefix("penstock: ").rstrip()


def stored(folder: Path) -> tuple[list[Key], set[str]]:
    """Keys, and the names of accounts."""

    async def read() -> tuple[list[Key], set[str]]:
        store = await Store.open(data_dir=folder)
        try:
            return await store.keys.list(), {account.name for account in await store.accounts.list()}
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("words", "account", "kind"),
    [
        ((), "default", "api"),
        (("--account", "acme"), "acme", "api"),
        (("--admin",), "admin", "admin"),
        (("--admin", "--account", "admin"), "admin", "admin"),
    ],
)
def test_whose_key_it_is(run: Run, tmp_path: Path, words: tuple[str, ...], account: str, kind: str) -> None:
    made = run("create", *words)
    assert (made.exit_code, made.stdout[:7]) == (0, "sk-pen-"), made.output
    (key,), _ = stored(tmp_path)
    assert (key.account_name, key.kind) == (account, kind)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("--account", "bad name"), "--account: an account's name is 1 to 64 letters"),
        (("--account", "admin"), "Admin keys, and no others, belong to the account admin"),
        (("--account", "admin", "--admin", "--limit", "rpm=5"), "An admin key runs no inference: it has no limits"),
        (("--admin", "--account", "acme"), "no account is called acme"),
        (("--expires-in-days", "1e12"), "--expires-in-days 1e\\+12: expected more than 0, and at most 36500"),
        (("--expires-in-days", "nan"), "--expires-in-days nan"),
        (("--expires-in-days", "-1"), "--expires-in-days -1"),
        (("--feature", "juggling"), "--feature juggling: expected one of"),
        (("--limit", "rpm"), "--limit rpm: expected a dimension and a number"),
        (("--limit", "rpn=1"), "--limit.rpn: unknown limit"),
    ],
)
def test_a_key_that_can_not_be(run: Run, tmp_path: Path, words: tuple[str, ...], pattern: str) -> None:
    assert re.match(pattern, one_line(run("create", *words)))
    keys, accounts = stored(tmp_path)
    assert not keys
    assert accounts <= {"admin"}


def test_an_account_of_users_has_no_admin_key(run: Run) -> None:
    assert run("create", "--account", "acme").exit_code == 0
    assert "belong to the account admin" in one_line(run("create", "--account", "acme", "--admin"))


def test_a_locked_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def locked(*_: object, **__: object) -> list[Key]:
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(Keys, "list", locked)
    assert one_line(run("list")) == "database_url: the database can't be used: database is locked"


def test_a_database_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql+psycopg://u:hunter22@127.0.0.1:1/d")
    assert "hunter22" not in one_line(run("list"))
