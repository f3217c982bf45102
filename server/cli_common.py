"""What all commands share: settings from flags and environment, and errors of one line with exit status 2."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import typer
import uvloop

from server.settings import Settings, load
from server.settings_layers import SettingsError

T = TypeVar("T")


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


def fail(error: Exception | str) -> NoReturn:
    typer.echo(f"penstock: {error}", err=True)
    raise typer.Exit(2)
