"""Load a transformers checkpoint from a local folder, or say in one line why it can't be served."""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from engines.base import EngineError
from engines.torch import attention, probe, quantize
from engines.torch.backend import LayerShape

log = logging.getLogger("penstock.engine")

_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(slots=True, frozen=True)
class LoadedModel:
    model: Any
    layers: list[LayerShape]
    vocab_size: int  # rows of the output embedding
    max_positions: int  # 0: the configuration states none


def load(path: str, dtype: str, device: torch.device, int8: quantize.Int8Config | None = None) -> LoadedModel:
    """With `int8`, or from a folder that `penstock quantize` wrote, with int8 weights.

    Raises EngineError. Executes no code of the checkpoint and unpickles nothing.
    """
    folder = Path(path)
    check_dtype(dtype)
    config = load_config(folder)
    _check_config(config, folder)
    attention.register()
    transformers_logging.disable_progress_bar()
    if int8 is not None or quantize.is_saved(config):
        model = _load_int8(folder, config, dtype, device, int8)
    else:
        model, report = load_weights(
            AutoModelForCausalLM, folder, config, dtype, attn_implementation=attention.ATTENTION_NAME
        )
        check_weights(report, folder)
    model = placed(model, device)
    head = model.get_output_embeddings()
    if head is None:
        raise EngineError(f"{folder}: {type(model).__name__} has no output embedding")
    return LoadedModel(model, probe.layer_shapes(model), int(head.weight.shape[0]), max_positions(config))


def _load_int8(folder: Path, config: Any, dtype: str, device: torch.device, int8: quantize.Int8Config | None) -> Any:
    """Quantized from the checkpoint's own precision, whatever the rest is computed in. `int8`: if it is not yet."""
    more = {} if quantize.is_saved(config) else {"quantization_config": int8}
    model, report = load_weights(
        AutoModelForCausalLM, folder, config, "auto", attn_implementation=attention.ATTENTION_NAME, **more
    )
    check_weights(report, folder)
    stored = torch.float32 if _is_slow(model.dtype, device) else model.dtype
    try:
        quantize.finish(model, stored if dtype == "auto" else getattr(torch, dtype))
    except EngineError as error:
        raise EngineError(f"{folder}: {error}") from error
    log.info("%s: %s", folder, quantize.describe(model))
    return model


def check_dtype(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise EngineError(f'dtype: expected one of {", ".join(_DTYPES)}, got "{dtype}"')


def placed(model: Any, device: torch.device) -> Any:
    """On its device, ready to compute."""
    if _is_slow(model.dtype, device):
        model = model.float()
    return model.to(device).eval()


def _is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """float16 on a CPU, where float32 holds all of it."""
    return dtype == torch.float16 and device.type == "cpu"


def load_config(folder: Path) -> Any:
    file = folder / "config.json"
    if not folder.is_dir():
        raise EngineError(f"path: no folder {folder}")
    if not file.is_file():
        raise EngineError(f"{folder}: no config.json: expected the folder of a transformers checkpoint")
    try:
        json.loads(file.read_text(encoding="utf-8"))
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615
    except json.JSONDecodeError as error:
        raise EngineError(f"{file}: not valid JSON: {error}") from error
    except Exception as error:
        raise EngineError(f"{file}: {_one_line(error)}") from error


def check_files(config: Any, folder: Path) -> None:
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise EngineError(f"{folder}: no model.safetensors: only safetensors weights are loaded")
    if getattr(config, "quantization_config", None):
        raise EngineError(f"{folder}: quantization_config is not supported: use unquantized weights")


def _check_config(config: Any, folder: Path) -> None:
    if not quantize.is_saved(config):
        check_files(config, folder)
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if config.is_encoder_decoder or model_class is None:
        raise EngineError(f"{folder}: model type {config.model_type} is not a causal language model")
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if not model_class.is_backend_compatible():
        raise EngineError(f"{folder}: {model_class.__name__} does not support attention back-ends")
    if "logits_to_keep" not in inspect.signature(model_class.forward).parameters:
        raise EngineError(f"{folder}: {model_class.__name__} does not support logits_to_keep")


def load_weights(auto: Any, folder: Path, config: Any, dtype: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The model as `auto`, one of transformers' AutoModel classes, makes it, and the report for `check_weights`."""
    try:
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused by check_weights, by name
            output_loading_info=True,
            **more,
        )
    except EngineError as error:
        raise EngineError(f"{folder}: {error}") from error
    except Exception as error:
        raise EngineError(f"{folder}: weights can't be loaded: {_one_line(error)}") from error
    return model, report


def check_weights(report: dict[str, Any], folder: Path) -> None:
    if missing := sorted(report["missing_keys"]):
        raise EngineError(f"{folder}: {len(missing)} weights are missing, among them {missing[0]}")
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise EngineError(f"{folder}: {name} has the shape {tuple(stored)}, but config.json asks for {tuple(expected)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def max_positions(config: Any) -> int:
    """The longest context whose positions are right for every sequence of a packed row.

    longrope changes the frequencies of the whole row as soon as one sequence is longer than the original context,
    so that its short sequences would change with their neighbours: it is served up to that length.
    """
    text = config.get_text_config(decoder=True)
    limit = int(getattr(text, "max_position_embeddings", 0) or 0)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
        limit = min(limit, int(original))
    return limit
