"""`penstock triton-repo`: our own engine as a model that a Triton serves."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from server.cli_common import fail


class HostedEngine(StrEnum):
    TORCH = "torch"
    ONNX = "onnx"
    FAKE = "fake"


def triton_repo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A local folder or a Hugging Face id.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The model repository; it may hold other models.")],
    engine: Annotated[HostedEngine, typer.Option(help="What runs the model. fake takes MODEL for its name.")] = (
        HostedEngine.TORCH
    ),
    name: Annotated[str, typer.Option(help="Triton's name for it; without one, MODEL's own.")] = "",
    version: Annotated[int, typer.Option(min=1, help="Triton's version of it.")] = 1,
    link: Annotated[bool, typer.Option("--link", help="Name MODEL's folder by its path, do not copy it.")] = False,
    dtype: Annotated[str, typer.Option(help="auto | float32 | bfloat16.")] = "auto",
    quantize: Annotated[str, typer.Option(help="none | int8.")] = "none",
    max_model_len: Annotated[int, typer.Option(min=0, help="Tokens of context; 0: the model's own.")] = 0,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 64,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that wait, of all gateways.")] = 1024,
    options: Annotated[str, typer.Option(help="The engine's own options, as a JSON object.")] = "{}",
) -> None:
    """Write a model repository that tritonserver loads as it is: our scheduler and engine as a python model."""
    # Here, since the hub's client takes a while to import, and the other commands should not wait for it.
    from batching.triton_parameters import ModelParameters, read_parameters
    from batching.triton_repository import WEIGHTS_FOLDER, RepositoryError, TritonRepository
    from engines import registry
    from engines.base import EngineError
    from server import model_files
    from server.settings_models import model_name

    try:
        weights = None if engine is HostedEngine.FAKE else _find(model, engine).resolve()
        path = "" if weights is None else str(weights) if link else WEIGHTS_FOLDER
        limits = (max_model_len, max_num_seqs, max_queue)
        parameters = ModelParameters(engine.value, path, dtype, quantize, *limits, options)
        read = read_parameters(parameters.strings(), Path(), name)  # as Triton will
        registry.check_generates(replace(read.engine, path=str(weights or "")))
        repository = TritonRepository(folder, name or model_name(model), version, parameters, None if link else weights)
        written = repository.write()
    except (EngineError, RepositoryError, model_files.ModelFilesError) as error:
        fail(error)
    typer.echo(f"{written} is ready: tritonserver --model-repository {folder.resolve()}")


def _find(model: str, engine: HostedEngine) -> Path:
    """Raises ModelFilesError, which names what is missing."""
    from server import model_files

    is_onnx = engine is HostedEngine.ONNX
    folder = model_files.find(model, model_files.GRAPHS if is_onnx else model_files.WEIGHTS)
    pattern = "*.onnx" if is_onnx else "*.safetensors"
    if next(folder.rglob(pattern), None) is None:
        raise model_files.ModelFilesError(f"{model}: --engine {engine.value} needs a folder with {pattern} files")
    return folder
