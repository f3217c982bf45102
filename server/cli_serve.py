"""`penstock serve`, from settings to exit. Apart from server.cli, since it imports the whole gateway."""

from __future__ import annotations

import sys

import typer

from engines.base import EngineError
from server import logs
from server.banner import banner
from server.cli_common import run
from server.gateway import AddressError
from server.gateway import serve as serve_gateway
from server.model_files import ModelFilesError
from server.services import Services
from server.settings import Settings
from server.settings_layers import SettingsError
from server.store import StoreError
from server.text.tokenizer import TokenizerError

OPERATOR_ERRORS = (SettingsError, StoreError, EngineError, ModelFilesError, TokenizerError, AddressError)


def serve(settings: Settings, *, show_key: bool) -> None:
    """Until a signal ends it."""
    logs.configure(settings.server.log_level)
    for warning in settings.warnings:
        typer.echo(f"penstock: warning: {warning}", err=True)

    def ready(services: Services, url: str) -> None:
        typer.echo(banner(services, url, show_key=show_key))
        sys.stdout.flush()

    run(lambda: serve_gateway(settings, ready), *OPERATOR_ERRORS)
