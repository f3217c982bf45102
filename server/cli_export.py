"""`penstock export-onnx`: a model's folder as ONNX Runtime wants it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.cli_common import fail


class Quantization(StrEnum):
    NONE = "none"
    INT8 = "int8"


def export_onnx(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A local folder or a Hugging Face id.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where model.onnx and the files around it go.")],
    quantize: Annotated[
        Quantization, typer.Option(help="int8 also writes model_quantized.onnx, which serve --quantize int8 takes.")
    ] = Quantization.NONE,
) -> None:
    """Export a causal language model to ONNX, with its KV cache, for serve --engine onnx DIR."""
    # Here, since they load torch and the hub's client, and the other commands should not wait for that.
    from engines.base import EngineError
    from server import model_files

    try:
        from engines.onnx.quantize import quantize as quantize_graph
        from engines.torch.export_onnx import export

        graph = export(model_files.find(model), folder)
        if quantize is Quantization.INT8:
            quantize_graph(graph, folder / "model_quantized.onnx")
    except ModuleNotFoundError as error:
        fail(f'export-onnx needs {error.name}: install it with pip install "penstock[onnx]"')
    except (EngineError, model_files.ModelFilesError) as error:
        fail(error)
    typer.echo(f"{folder} is ready: penstock serve --engine onnx {folder}")
