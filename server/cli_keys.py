"""`penstock keys`: on the database itself, whether a server runs or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table

from quota.levels import FEATURES, LimitError, Limits
from server.settings import Settings, load
from server.settings_layers import SettingsError
from server.store import Store, StoreError
from server.store.accounts import DEFAULT_ACCOUNT
from server.store.credentials import issue_key, load_pepper
from server.store.keys import KeySpec
from server.store.records import Key, KeyKind, utc_now

keys = typer.Typer(help="Create, list and revoke keys.", no_args_is_help=True, pretty_exceptions_enable=False)

T = TypeVar("T")
ConfigOption = Annotated[Path | None, typer.Option(help="The server's TOML file.")]
DataDirOption = Annotated[Path | None, typer.Option(help="The server's --data-dir.")]


@keys.command()
def create(
    account: Annotated[str, typer.Option(help="Whose key it is; a new account is made as needed.")] = DEFAULT_ACCOUNT,
    name: Annotated[str, typer.Option(help="For people: what it is used for.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="Only this model (name or name@version); repeatable.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Only this feature; repeatable.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="Its own limit, such as rpm=60; repeatable.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="Unset: it does not expire.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An admin key: /admin and /metrics, no inference.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it. It can't be shown again."""
    spec_limits = _limits(limit or [])
    unknown = sorted(set(feature or []) - FEATURES)
    if unknown:
        raise _fail(f"--feature {unknown[0]}: expected one of {', '.join(sorted(FEATURES))}")

    async def work(store: Store, pepper: bytes) -> str:
        spec = KeySpec(
            account=await store.accounts.ensure(account),
            kind=KeyKind.ADMIN if admin else KeyKind.API,
            name=name,
            models=frozenset(model) if model else None,
            features=frozenset(feature) if feature else None,
            limits=spec_limits,
            expires_at=_expiry(expires_in_days),
        )
        return (await issue_key(store, pepper, spec)).text

    typer.echo(_run(work, config, data_dir))


@keys.command(name="list")
def list_keys(
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show all keys, without their text."""

    async def work(store: Store, _: bytes) -> list[Key]:
        owner = await store.accounts.get(account) if account else None
        if account and owner is None:
            raise StoreError(f"no account is called {account}")
        found: list[Key] = []
        while page := await store.keys.list(owner.id if owner else None, after=found[-1].id if found else None):
            found.extend(page)
        return found

    table = Table(
        Column("id", no_wrap=True, min_width=8),
        "account",
        "kind",
        "name",
        "models",
        "features",
        "created",
        "last used",
        "state",
    )
    for key in _run(work, config, data_dir):
        table.add_row(
            key.id,
            key.account_name,
            key.kind,
            key.name,
            ", ".join(sorted(key.models)) if key.models is not None else "all",
            ", ".join(sorted(key.features)) if key.features is not None else "all",
            _moment(key.created_at),
            _moment(key.last_used_at),
            _state(key),
        )
    Console().print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id: its 8 characters after sk-pen-.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke a key, for good. Running servers follow within 5 seconds."""

    async def work(store: Store, _: bytes) -> Key | None:
        return await store.keys.revoke(key_id)

    if _run(work, config, data_dir) is None:
        raise _fail(f"no key has the id {key_id}")
    typer.echo(f"revoked {key_id}")


def _limits(texts: list[str]) -> dict[str, int]:
    """`["rpm=60"]` as a table of limits, checked."""
    table: dict[str, int] = {}
    for text in texts:
        dimension, _, number = text.partition("=")
        if not number.isdecimal():
            raise _fail(f"--limit {text}: expected a dimension and a number, such as rpm=60")
        table[dimension] = int(number)
    try:
        Limits.parse(table, "--limit")
    except LimitError as error:
        raise _fail(str(error)) from None
    return table


def _expiry(days: float | None) -> datetime | None:
    return None if days is None else utc_now() + timedelta(days=days)


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else moment.strftime("%Y-%m-%d %H:%M")


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_moment(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= utc_now() else 'expires'} {_moment(key.expires_at)}"
    return "active"


def _run(work: Callable[[Store, bytes], Awaitable[T]], config: Path | None, data_dir: Path | None) -> T:
    try:
        settings = load(config, {"data_dir": data_dir}, os.environ)
        return asyncio.run(_with_store(settings, work))
    except (SettingsError, StoreError) as error:
        raise _fail(str(error)) from None


async def _with_store(settings: Settings, work: Callable[[Store, bytes], Awaitable[T]]) -> T:
    store = await Store.open(settings.server.database_url, settings.server.data_dir)
    try:
        return await work(store, await load_pepper(store, settings.secrets.key_pepper or ""))
    finally:
        await store.close()


def _fail(message: str) -> typer.Exit:
    typer.echo(f"penstock: {message}", err=True)
    return typer.Exit(2)
