"""What a model's files say about its vectors: for what it is served, how token vectors become one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.files import read_json
from engines.types import EngineConfig, Task, VectorInfo

Vectors = NDArray[np.float32]
CPU_BATCH_TOKENS = 1024  # with padding: the matrix products of a CPU gain nothing from more
GPU_BATCH_TOKENS = 8192
_MODULES = ("Transformer", "Pooling", "Normalize")


class Pooling(StrEnum):
    """How token vectors become one. The values are those of sentence-transformers."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "lasttoken"


def task_of(config: EngineConfig) -> Task:
    """What the configuration says, else the files: a sentence-transformers folder embeds, and so does a model without
    a head for language. Raises EngineError."""
    task = _task(Path(config.path)) if config.task == "auto" else Task(config.task)
    for key, is_set in (("pooling", config.pooling != "auto"), ("matryoshka", config.matryoshka)):
        if is_set and task is not Task.EMBED:
            raise EngineError(f'{key}: means nothing to a model that does not embed; set task = "embed"')
    return task


def _task(folder: Path) -> Task:
    if (folder / "modules.json").is_file() or is_static(folder):
        return Task.EMBED
    name = str((read_json(folder / "config.json").get("architectures") or [""])[0])
    if name.endswith("ForSequenceClassification"):
        return Task.SCORE
    has_no_head = name.endswith(("Model", "ForMaskedLM")) and "LMHead" not in name  # GPT2LMHeadModel generates
    return Task.EMBED if has_no_head else Task.GENERATE


def is_static(folder: Path) -> bool:
    """Whether the folder holds a model2vec model: a vector for each token, and no network."""
    return bool(read_json(folder / "config.json").get("model_type") == "model2vec")


@dataclass(slots=True, frozen=True)
class SentenceFiles:
    """What a sentence-transformers folder says. A plain transformers folder means the mean, of length 1."""

    pooling: Pooling
    normalizes: bool
    max_len: int  # tokens; 0: it does not say

    @classmethod
    def read(cls, folder: Path, pooling: str = "auto") -> SentenceFiles:
        """`pooling` is the configuration's: anything but "auto" wins. Raises EngineError for what we can't do."""
        found = _pooling(folder) if pooling == "auto" else Pooling("lasttoken" if pooling == "last" else pooling)
        limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        file = folder / "config_sentence_transformers.json"
        if read_json(file).get("default_prompt_name"):
            raise EngineError(f"{file}: default_prompt_name is not supported: clients have to send the prompt")
        return cls(found, _normalizes(folder), limit if isinstance(limit, int) else 0)


def _pooling(folder: Path) -> Pooling:
    file = folder / "1_Pooling" / "config.json"
    config = read_json(file)
    modes = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes if mode != "include_prompt"]
    named = config.get("pooling_mode") or (modes[0] if modes else Pooling.MEAN)
    if named not in set(Pooling) or len(modes) > 1:
        raise EngineError(f"{file}: pooling {', '.join(modes) or named}: expected one of {', '.join(Pooling)}")
    return Pooling(named)


def _normalizes(folder: Path) -> bool:
    file = folder / "modules.json"
    if not file.is_file():
        return True
    modules = read_json(file, list)
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules if isinstance(module, dict)]
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise EngineError(f"{file}: module {unknown[0]} is not supported, expected {', '.join(_MODULES)}")
    return "Normalize" in kinds


def vector_info(
    config: EngineConfig, dim: int, *, normalized: bool, truncates: bool = False, adds_special_tokens: bool = True
) -> VectorInfo:
    """With what config.json says of Matryoshka, under the names that vLLM knows."""
    whole = read_json(Path(config.path) / "config.json")
    listed = whole.get("matryoshka_dimensions")
    sizes = sorted(size for size in listed if isinstance(size, int)) if isinstance(listed, list) else []
    allowed = truncates or config.matryoshka or bool(whole.get("is_matryoshka") or sizes)
    return VectorInfo(
        dim, normalized=normalized, truncates=allowed, dimensions=sizes, adds_special_tokens=adds_special_tokens
    )


def activation(folder: Path) -> str:
    """What a cross-encoder does with its one number: "sigmoid", or "identity". Raises EngineError for another."""
    file = folder / "config.json"
    config = read_json(file)
    nested = config.get("sentence_transformers")
    name = nested.get("activation_fn") if isinstance(nested, dict) else None
    name = str(name or config.get("sbert_ce_default_activation_function") or "Sigmoid").rsplit(".", 1)[-1].lower()
    if name not in ("sigmoid", "identity"):
        raise EngineError(f"{file}: activation function {name}: expected Sigmoid or Identity")
    return name


def activated(logits: Vectors, name: str) -> Vectors:
    """[n, 1] -> [n, 1], by what `activation` gave."""
    if name == "identity":
        return logits
    scores: Vectors = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return scores


def pool(states: Vectors, lengths: NDArray[np.int64], pooling: Pooling) -> Vectors:
    """[n, tokens, dim], padded at the right -> [n, dim]."""
    if pooling is Pooling.CLS:
        return states[:, 0]
    if pooling is Pooling.LAST:
        return states[np.arange(len(states)), lengths - 1]
    mask = np.arange(states.shape[1]) < lengths[:, None]
    pooled: Vectors = np.einsum("ntd,nt->nd", states, mask.astype(np.float32)) / lengths[:, None].astype(np.float32)
    return pooled


def of_length_one(vectors: Vectors) -> Vectors:
    """Zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalized: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return normalized


def as_bytes(vectors: Vectors) -> list[bytes]:
    """[n, dim] -> the little endian bytes of each."""
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype="<f4")]


def padded(rows: list[list[int]], pad: int = 0) -> NDArray[np.int64]:
    """[n, the longest], filled at the right."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids


def segments(num_first: list[int], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token types as BERT has them: 1 for the second text of a pair, which begins after `num_first` tokens."""
    columns = np.arange(lengths.max())
    types: NDArray[np.int64] = ((columns >= np.array(num_first)[:, None]) & (columns < lengths[:, None])).astype(
        np.int64
    )
    return types


def check_no_quantize(config: EngineConfig, what: Any = "this model") -> None:
    """Raises EngineError."""
    if config.quantize != "none":
        raise EngineError(f'quantize: "{config.quantize}" is not supported for {what}')
