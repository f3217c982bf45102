"""What a model is served for, and the arithmetic on its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.files import read_json
from engines.sentence_files import Pooling, Vectors
from engines.types import EngineConfig, Task, VectorInfo

CPU_BATCH_TOKENS = 1024  # with padding: the matrix products of a CPU gain nothing from more
GPU_BATCH_TOKENS = 8192


def task_of(config: EngineConfig, *, generating_embeds: bool = False) -> Task:
    """What the configuration says, else the files: a sentence-transformers folder embeds, and so does a model without
    a head for language. `generating_embeds`: whether the engine has vectors of a model that generates. Raises
    EngineError."""
    task = _task(Path(config.path)) if config.task == "auto" else Task(config.task)
    for key, is_set in (("pooling", config.pooling != "auto"), ("matryoshka", config.matryoshka)):
        if is_set and not (task is Task.EMBED or (task is Task.GENERATE and generating_embeds)):
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
