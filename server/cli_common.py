"""What all commands share: settings from flags and environment, and errors of one line with exit status 2."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
import uvloop

from server.settings import Settings, load
from server.settings_layers import SettingsError
from server.store import Store
from server.store.database import unavailable

T = TypeVar("T")
ConfigOption = Annotated[Path | None, typer.Option(help="The server's TOML file.")]
DataDirOption = Annotated[Path | None, typer.Option(help="The server's --data-dir.")]


def read_settings(config: Path | None, flags: Mapping[str, object]) -> Settings:
    try:
        return load(config, flags, os.environ)
    except SettingsError as error:
        fail(error)


def run(work: Callable[[], Awaitable[T]], *operator_errors: type[Exception]) -> T:
    """On uvloop; what the operator can mend ends in one line, without a traceback."""

    async def main() -> T:
        return await work()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except operator_errors as error:
        fail(error)


async def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """On the database itself. Raises StoreError."""
    store = await Store.open(settings.server.database_url, settings.server.data_dir)
    try:
        with unavailable():
            return await work(store)
    finally:
        await store.close()


def fail(error: Exception | str) -> NoReturn:
    typer.echo(f"penstock: {error}", err=True)
    raise typer.Exit(2)
