"""The command `penstock`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.table import Column, Table

from engines.base import EngineError
from loadtest.cli import bench
from server import logs
from server.banner import banner
from server.cli_keys import keys
from server.gateway import AddressError
from server.gateway import serve as serve_gateway
from server.model_files import ModelFilesError
from server.services import Services
from server.settings import Settings, load
from server.settings_layers import SettingsError
from server.store import StoreError
from server.text.tokenizer import TokenizerError

OPERATOR_ERRORS = (SettingsError, StoreError, EngineError, ModelFilesError, TokenizerError, AddressError)

app = typer.Typer(
    name="penstock",
    help="An OpenAI-compatible inference server: exact quotas, versioned models, batching by token length.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, keys among them
)
app.command()(bench)
app.add_typer(keys, name="keys")

T = TypeVar("T")


@app.command()
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Local folders or Hugging Face ids.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; see penstock.example.toml.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    engine: Annotated[str | None, typer.Option(help="torch | onnx | triton | fake, for every model.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto | float32 | bfloat16, for every model.")] = None,
    quantize: Annotated[str | None, typer.Option(help="none | int8, for every model.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes; more than 1 needs Redis.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the database is.")] = None,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="Print PENSTOCK_API_KEY in the examples (for development).")
    ] = False,
) -> None:
    """Serve models; without any, the bundled demonstration model."""
    flags = {
        "models": models or None,
        "host": host,
        "port": port,
        "engine": engine,
        "dtype": dtype,
        "quantize": quantize,
        "gateways": gateways,
        "data_dir": data_dir,
    }
    settings = read_settings(config, flags)
    logs.configure(settings.server.log_level)
    for warning in settings.warnings:
        typer.echo(f"penstock: warning: {warning}", err=True)

    def ready(services: Services, url: str) -> None:
        typer.echo(banner(services, url, show_key=show_key))
        sys.stdout.flush()

    run(lambda: serve_gateway(settings, ready))


@app.command()
def models(config: Annotated[Path | None, typer.Option(help="A TOML file; see penstock.example.toml.")] = None) -> None:
    """What a configuration declares, and what each name means."""
    settings = read_settings(config, {})
    table = Table(Column("model", no_wrap=True), "engine", "path", "dtype", "context", "replicas", "asked for as")
    for model in settings.models:
        names = [alias for alias, target in settings.routing.aliases.items() if target in (model.name, model.id)]
        place = model.path or model.url
        context = str(model.max_model_len or "its own")
        table.add_row(model.id, model.engine, place, model.dtype, context, str(model.replicas), ", ".join(names))
    Console().print(table)


def read_settings(config: Path | None, flags: Mapping[str, object]) -> Settings:
    try:
        return load(config, flags, os.environ)
    except SettingsError as error:
        fail(error)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """On uvloop; what the operator can mend ends in one line, without a traceback."""

    async def main() -> T:
        return await work()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except OPERATOR_ERRORS as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    typer.echo(f"penstock: {error}", err=True)
    raise typer.Exit(2)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
