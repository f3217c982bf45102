"""`penstock keys`: on the database itself, whether a server runs or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from quota.levels import FEATURES, LimitError, Limits
from server.cli_common import ConfigOption, DataDirOption, fail, read_settings, run, with_store
from server.store import Store, StoreError
from server.store.accounts import ADMIN_ACCOUNT, DEFAULT_ACCOUNT, check_name
from server.store.credentials import issue_key, load_pepper
from server.store.keys import KeySpec
from server.store.records import Account, Key, KeyKind, utc_now

keys = typer.Typer(help="Create, list and revoke keys.", no_args_is_help=True, pretty_exceptions_enable=False)

MAX_DAYS = 36_500  # as in the admin API

T = TypeVar("T")


@keys.command()
def create(
    account: Annotated[
        str | None,
        typer.Option(
            help=f"Whose key it is; made as needed. Unset: {DEFAULT_ACCOUNT}, or {ADMIN_ACCOUNT} with --admin."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="For people: what it is used for.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="Only this model (name or name@version); repeatable.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Only this feature; repeatable.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="Its own limit, such as rpm=60; repeatable.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Unset: it does not expire.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An admin key: /admin and /metrics, no inference.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it. It can't be shown again."""
    kind = KeyKind.ADMIN if admin else KeyKind.API
    limits, features, expires_at = _limits(limit or []), _features(feature), _expiry(expires_in_days)

    async def work(store: Store, pepper: bytes) -> str:
        spec = KeySpec(
            account=await _owner(store, account, kind),
            kind=kind,
            name=name,
            models=frozenset(model) if model else None,
            features=features,
            limits=limits,
            expires_at=expires_at,
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

    # On a narrow terminal what is long is wrapped, and nothing is cut off.
    short = [Column(title, no_wrap=True) for title in ("id", "created", "last used")]
    long = [
        Column(title, overflow="fold", min_width=len(title)) for title in ("account", "kind", "name", "scope", "state")
    ]
    table = Table(*short, *long, box=box.SIMPLE, pad_edge=False)
    for key in _run(work, config, data_dir):
        table.add_row(
            key.id,
            _day(key.created_at),
            _day(key.last_used_at),
            key.account_name,
            key.kind,
            key.name,
            _scope(key),
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
        fail(f"no key has the id {key_id}")
    typer.echo(f"revoked {key_id}")


def _limits(texts: list[str]) -> dict[str, int]:
    """`["rpm=60"]` as a table of limits, checked."""
    table: dict[str, int] = {}
    for text in texts:
        dimension, _, number = text.partition("=")
        if not number.isdecimal():
            fail(f"--limit {text}: expected a dimension and a number, such as rpm=60")
        table[dimension] = int(number)
    try:
        Limits.parse(table, "--limit")
    except LimitError as error:
        fail(error)
    return table


def _features(names: list[str] | None) -> frozenset[str] | None:
    if unknown := sorted(set(names or []) - FEATURES):
        fail(f"--feature {unknown[0]}: expected one of {', '.join(sorted(FEATURES))}")
    return frozenset(names) if names else None


def _expiry(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= MAX_DAYS:  # nor a NaN
        fail(f"--expires-in-days {days:g}: expected more than 0, and at most {MAX_DAYS}")
    return utc_now() + timedelta(days=days)


async def _owner(store: Store, name: str | None, kind: KeyKind) -> Account:
    """Only an account of API keys is made as needed. Raises StoreError."""
    name = name or (ADMIN_ACCOUNT if kind is KeyKind.ADMIN else DEFAULT_ACCOUNT)
    if found := await store.accounts.get(name):
        return found
    if kind is KeyKind.ADMIN and name != ADMIN_ACCOUNT:
        raise StoreError(f"no account is called {name}")
    try:
        check_name(name)
    except ValueError as error:
        raise StoreError(f"--account: {error}") from None
    return await store.accounts.ensure(name)


def _day(moment: datetime | None) -> str:
    return "never" if moment is None else moment.strftime("%Y-%m-%d")


def _scope(key: Key) -> str:
    """What the key is confined to."""
    scopes = (("models", key.models), ("features", key.features))
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in scopes if names is not None) or "all"


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= utc_now() else 'expires'} {_day(key.expires_at)}"
    return "active"


def _run(work: Callable[[Store, bytes], Awaitable[T]], config: Path | None, data_dir: Path | None) -> T:
    settings = read_settings(config, {"data_dir": data_dir})

    async def with_pepper(store: Store) -> T:
        return await work(store, await load_pepper(store, settings.secrets.key_pepper or ""))

    return run(lambda: with_store(settings, with_pepper), StoreError)
