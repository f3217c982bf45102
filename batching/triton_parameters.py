"""The parameters in the config.pbtxt of a worker inside Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from engines.base import EngineError
from engines.types import EngineConfig

STEPPED = ("torch", "onnx", "fake")  # engines that our scheduler steps
NOT_OURS = ("penstock_load",)  # what reloads a model changes it


@dataclass(slots=True, frozen=True)
class ModelParameters:
    """`path`: of the model's folder, relative to the version's. Of a limit, 0 lets the engine choose."""

    engine: str = "torch"
    path: str = ""
    dtype: str = "auto"
    quantize: str = "none"
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_queue: int = 1024  # requests that wait here, of all gateways
    options: str = "{}"  # of the engine kind alone: a JSON object

    def strings(self) -> dict[str, str]:
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}


@dataclass(slots=True, frozen=True)
class Parameters:
    engine: EngineConfig
    max_queue: int


def read_parameters(strings: Mapping[str, str], version_folder: Path, name: str) -> Parameters:
    """Raises EngineError. Upper case is Triton's own."""
    ours = {key: text for key, text in strings.items() if not key.isupper() and key not in NOT_OURS}
    known = [field.name for field in fields(ModelParameters)]
    for key in ours:
        if key not in known:
            raise EngineError(f"parameters.{key}: unknown; expected one of {', '.join(known)}")
    try:
        read = msgspec.convert(ours, ModelParameters, strict=False)
    except msgspec.ValidationError as error:
        raise EngineError(f"parameters: {error}") from error
    if read.engine not in STEPPED:
        raise EngineError(f"parameters.engine: expected one of {', '.join(STEPPED)}, got {read.engine!r}")
    if min(read.max_queue, read.max_num_seqs) < 1 or read.max_model_len < 0:
        raise EngineError("parameters: expected max_queue and max_num_seqs >= 1, max_model_len >= 0")
    engine = EngineConfig(
        kind=read.engine,
        path=str(version_folder / read.path) if read.path else "",
        name=name,
        dtype=read.dtype,
        quantize=read.quantize,
        max_model_len=read.max_model_len,
        max_num_seqs=read.max_num_seqs,
        options=read_options(read.options),
    )
    return Parameters(engine, read.max_queue)


def read_options(text: str) -> dict[str, Any]:
    """Raises EngineError."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise EngineError(f"options: expected a JSON object, got {text!r}: {error}") from None
    if not isinstance(options, dict):
        raise EngineError(f"options: expected a JSON object, got {text!r}")
    return options
