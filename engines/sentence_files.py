"""What a sentence-transformers folder says: how token vectors become one, and what is done with that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines.base import EngineError
from engines.files import read_json

Vectors = NDArray[np.float32]
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # in this order


class Pooling(StrEnum):
    """How token vectors become one. The values are those of sentence-transformers."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "lasttoken"


@dataclass(slots=True, frozen=True)
class Dense:
    """A layer over the pooled vector."""

    weight: Vectors  # [out, in]
    bias: Vectors  # [out]
    is_tanh: bool

    def __call__(self, vectors: Vectors) -> Vectors:
        out: Vectors = vectors @ self.weight.T + self.bias
        return np.tanh(out) if self.is_tanh else out


@dataclass(slots=True, frozen=True)
class SentenceFiles:
    """A plain transformers folder means the mean, of length 1."""

    pooling: Pooling
    layers: list[Dense]
    normalizes: bool
    max_len: int  # tokens; 0: it does not say

    @classmethod
    def read(cls, folder: Path, pooling: str = "auto") -> SentenceFiles:
        """`pooling` is the configuration's: anything but "auto" wins. Raises EngineError for what we can't do."""
        found = _pooling(folder) if pooling == "auto" else Pooling("lasttoken" if pooling == "last" else pooling)
        _check_prompt(folder / "config_sentence_transformers.json")
        limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        kinds = _modules(folder / "modules.json")
        return cls(
            pooling=found,
            layers=[_dense(folder / place) for kind, place in kinds or () if kind == "Dense"],
            normalizes=kinds is None or any(kind == "Normalize" for kind, _ in kinds),
            max_len=limit if isinstance(limit, int) else 0,
        )

    def finish(self, pooled: Vectors) -> Vectors:
        """[n, dim] -> [n, dim of the last layer]: all that comes behind the pooling."""
        for layer in self.layers:
            pooled = layer(pooled)
        return of_length_one(pooled) if self.normalizes else pooled


def of_length_one(vectors: Vectors) -> Vectors:
    """Zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalized: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return normalized


def _pooling(folder: Path) -> Pooling:
    file = folder / "1_Pooling" / "config.json"
    config = read_json(file)
    modes = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes if mode != "include_prompt"]
    named = config.get("pooling_mode") or (modes[0] if modes else Pooling.MEAN)
    if named not in set(Pooling) or len(modes) > 1:
        raise EngineError(f"{file}: pooling {', '.join(modes) or named}: expected one of {', '.join(Pooling)}")
    return Pooling(named)


def _check_prompt(file: Path) -> None:
    if read_json(file).get("default_prompt_name"):
        raise EngineError(f"{file}: default_prompt_name is not supported: clients have to send the prompt")


def _modules(file: Path) -> list[tuple[str, str]] | None:
    """Kind and folder of each, in order; None without the file."""
    if not file.is_file():
        return None
    modules = [module for module in read_json(file, list) if isinstance(module, dict)]
    found = [(str(module.get("type", "")).rsplit(".", 1)[-1], str(module.get("path", ""))) for module in modules]
    kinds = [kind for kind, _ in found]
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise EngineError(f"{file}: module {unknown[0]} is not supported, expected {', '.join(_MODULES)}")
    if kinds != sorted(kinds, key=_MODULES.index):
        raise EngineError(f"{file}: modules in the order {', '.join(kinds)}, expected {', '.join(_MODULES)}")
    return found


def _dense(folder: Path) -> Dense:
    config, file = read_json(folder / "config.json"), folder / "model.safetensors"
    name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if name not in ("Tanh", "Identity"):
        raise EngineError(f"{folder / 'config.json'}: activation function {name}: expected Tanh or Identity")
    if not file.is_file():
        raise EngineError(f"{folder}: no model.safetensors: only safetensors weights are loaded")
    try:
        tensors: dict[str, Any] = load_file(file)
        weight = tensors["linear.weight"].astype(np.float32)
    except Exception as error:
        raise EngineError(f"{file}: not the weights of a layer: {' '.join(str(error).split())[:200]}") from error
    bias = tensors.get("linear.bias", np.zeros(len(weight))).astype(np.float32)
    return Dense(weight, bias, is_tanh=name == "Tanh")
