"""`penstock serve`, from settings to exit. Apart from server.cli, since it imports the whole gateway."""

from __future__ import annotations

import sys

import typer

from engines.types import Task
from server import logs
from server.banner import banner
from server.cli_common import run
from server.launch import OPERATOR_ERRORS
from server.launch import serve as run_server
from server.settings import Settings
from server.store.credentials import GeneratedKeys


def serve(settings: Settings, *, show_key: bool) -> None:
    """Until a signal ends it."""
    logs.configure(settings.server.log_level)
    for warning in settings.warnings:
        typer.echo(f"penstock: warning: {warning}", err=True)

    def ready(keys: GeneratedKeys, url: str, task: Task) -> None:
        typer.echo(banner(settings, keys, url, task, show_key=show_key))
        sys.stdout.flush()

    run(lambda: run_server(settings, ready), *OPERATOR_ERRORS)
