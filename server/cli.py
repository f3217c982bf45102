"""The command `penstock`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from loadtest.cli import bench
from server.cli_common import read_settings
from server.cli_export import export_onnx
from server.cli_keys import keys
from server.cli_quantize import quantize as quantize_model
from server.cli_quota import quota
from server.cli_top import top
from server.cli_triton import triton_repo

app = typer.Typer(
    name="penstock",
    help="An OpenAI-compatible inference server: exact quotas, versioned models, batching by token length.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, keys among them
)
app.command()(bench)
app.command()(export_onnx)
app.command()(quantize_model)
app.command()(top)
app.command()(triton_repo)
app.add_typer(keys, name="keys")
app.add_typer(quota, name="quota")


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
    triton_url: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of Triton's gRPC, for every model; MODEL is its name there. Several, with commas: replicas."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hugging Face id of the tokenizer, for every model.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="auto | generate | embed | score, for every model.")] = None,
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
        "triton_url": triton_url,
        "tokenizer": tokenizer,
        "task": task,
        "gateways": gateways,
        "data_dir": data_dir,
    }
    settings = read_settings(config, flags)
    # Here, since it imports the whole gateway, and the other commands should not wait for that.
    from server import cli_serve

    cli_serve.serve(settings, show_key=show_key)


@app.command()
def models(config: Annotated[Path | None, typer.Option(help="A TOML file; see penstock.example.toml.")] = None) -> None:
    """What a configuration declares, and what each name means."""
    settings = read_settings(config, {})
    table = Table(Column("model", no_wrap=True), "engine", "path", "dtype", "context", "replicas", "asked for as")
    for model in settings.models:
        names = [alias for alias, target in settings.routing.aliases.items() if target in (model.name, model.id)]
        place = model.path or ", ".join(model.url)
        context = str(model.max_model_len or "its own")
        table.add_row(model.id, model.engine, place, model.dtype, context, str(model.num_replicas), ", ".join(names))
    Console().print(table)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
