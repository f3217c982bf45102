"""`penstock quantize`: the int8 twin of a checkpoint, as a folder that is served like any other."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from engines.base import EngineError
from engines.files import read_json
from engines.torch import loader
from engines.torch.quantize import Int8Config, Progress, is_saved

_TEXTS = (".json", ".jinja", ".txt", ".model", ".md")
_NOT_COPIED = ("config.json", "model.safetensors.index.json")  # are written anew
_SHARD = "5GB"


@dataclass(slots=True, frozen=True)
class Sizes:
    """Bytes of all weights."""

    source: int
    target: int
    float32: int  # what they would be in float32


def save(source: Path, target: Path, progress: Progress | None = None) -> Sizes:
    """Write the whole folder or, with an EngineError, nothing. Loaded from it the weights are, bit for bit, what
    `--quantize int8` makes of the source. Executes no code of the checkpoint and unpickles nothing."""
    if target.exists():
        raise EngineError(f"{target}: exists already")
    if is_saved(loader.load_config(source)):
        raise EngineError(f"{source}: its weights are int8 already")
    model = loader.load(str(source), "auto", torch.device("cpu"), Int8Config(progress=progress)).model
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write(model, source, partial)
        partial.rename(target)
    except OSError as error:
        raise EngineError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    parameters = sum(p.numel() for p in model.parameters())  # of what is tied, one
    return Sizes(_weight_bytes(source), _weight_bytes(target), parameters * torch.float32.itemsize)


def _write(model: Any, source: Path, folder: Path) -> None:
    save_torch_state_dict(_weights(model), folder, max_shard_size=_SHARD)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes them their owner's alone
    (folder / "config.json").write_text(json.dumps(_config(model, source), indent=2) + "\n", encoding="utf-8")
    for file in source.iterdir():
        if file.is_file() and file.suffix in _TEXTS and file.name not in _NOT_COPIED:
            shutil.copy(file, folder)
    for name in _embedding_folders(source):
        shutil.copytree(source / name, folder / name)


def _embedding_folders(source: Path) -> list[str]:
    """In which sentence-transformers' files say how the model embeds. None that lies outside its folder."""
    paths = [module.get("path") for module in read_json(source / "modules.json", list) if isinstance(module, dict)]
    return [path for path in paths if isinstance(path, str) and path and Path(path).name == path != ".."]


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """What is tied once, but for its scales: every module that is loaded has its own."""
    weights = dict(model.state_dict())
    for target, source in model.all_tied_weights_keys.items():
        del weights[target]
        if (scales := f"{target}_scale") in weights:
            weights[scales] = weights[f"{source}_scale"].clone()
    return weights


def _config(model: Any, source: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(source / "config.json")
    if not {"dtype", "torch_dtype"} & config.keys():  # which is guessed from a checkpoint's first tensor
        config["dtype"] = str(model.dtype).removeprefix("torch.")
    if not model.all_tied_weights_keys:  # whatever its config.json says: two that differ are not tied
        config["tie_word_embeddings"] = False
    return config | {"quantization_config": Int8Config().to_dict()}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
