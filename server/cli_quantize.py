"""`penstock quantize`: a model's folder with int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from server.cli_common import fail


def quantize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A local folder or a Hugging Face id.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write, which must not exist yet.")],
) -> None:
    """Write a model with int8 weights, for serve TARGET: what serve --quantize int8 SOURCE makes at every start."""
    # Here, since they load torch and the hub's client, and the other commands should not wait for that.
    from engines.base import EngineError
    from engines.torch.save_int8 import save
    from server import model_files

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("int8", total=None)
            folder = model_files.find(source)
            sizes = save(folder, target, lambda done, total: bar.update(task, completed=done, total=total))
    except (EngineError, model_files.ModelFilesError) as error:
        fail(error)
    typer.echo(
        f"{target} is ready, {_megabytes(sizes.target)} of weights from {_megabytes(sizes.source)} "
        f"({sizes.target / sizes.float32:.1%} of float32): penstock serve {target}"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
