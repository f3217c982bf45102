"""Static embeddings in model2vec's format: the weighted mean of the vectors of a text's tokens. No network runs.

model.safetensors has `embeddings` [rows, dim] and, where its vocabulary is quantized, `mapping` [tokens], the row of
each token, and `weights` [tokens]. An unknown token is left out, of tokenizers that name one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from engines.base import EngineError, VectorEngine
from engines.files import read_json
from engines.sentence_files import Vectors, of_length_one
from engines.steps import TextBatch
from engines.types import EngineConfig, EngineInfo, Task
from engines.vectors import as_bytes, check_no_quantize, vector_info

_MAX_BATCH_TOKENS = 1 << 20


class StaticEngine(VectorEngine):
    """Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        folder = Path(config.path)
        check_no_quantize(config, "a static model")
        if config.pooling not in ("auto", "mean"):
            raise EngineError(f'pooling: a static model takes the mean, got "{config.pooling}"')
        if config.task not in ("auto", "embed"):
            raise EngineError(f'task: a static model has embeddings alone, expected "embed", got "{config.task}"')
        if config.options:
            raise EngineError(f"options.{next(iter(config.options))}: unknown; a static model has none")
        settings = read_json(folder / "config.json")
        self._load(folder / "model.safetensors")
        self._unknown = _unknown_id(folder / "tokenizer.json")
        self._normalizes = bool(settings.get("normalize", False))
        dim = int(self._vectors.shape[1])
        by_pca = bool(settings.get("apply_pca"))  # whose components come in the order of their weight
        info = vector_info(config, dim, normalized=self._normalizes, truncates=by_pca, adds_special_tokens=False)
        super().__init__(
            EngineInfo(
                max_model_len=config.max_model_len or int(settings.get("seq_length") or 1_000_000),
                max_num_seqs=config.max_num_seqs,
                vocab_size=len(self._mapping),
                token_budget=_MAX_BATCH_TOKENS,
                description=f"static, {len(self._vectors)} vectors of {dim}",
                task=Task.EMBED,
                vectors=info,
            )
        )

    def _load(self, file: Path) -> None:
        if not file.is_file():
            raise EngineError(f"{file.parent}: no model.safetensors: only safetensors weights are loaded")
        try:
            tensors: dict[str, Any] = load_file(file)
        except Exception as error:
            raise EngineError(f"{file}: not readable: {' '.join(str(error).split())[:200]}") from error
        if "embeddings" not in tensors or tensors["embeddings"].ndim != 2:
            raise EngineError(f"{file}: no table `embeddings`, it has {', '.join(sorted(tensors))}")
        self._vectors: Vectors = tensors["embeddings"].astype(np.float32)
        self._mapping = tensors.get("mapping", np.arange(len(self._vectors))).astype(np.int64)
        self._weights = tensors.get("weights", np.ones(len(self._mapping))).astype(np.float32)
        if len(self._weights) != len(self._mapping) or not 0 <= self._mapping.min() <= self._mapping.max() < len(
            self._vectors
        ):
            raise EngineError(f"{file}: `mapping` and `weights` don't fit `embeddings`")

    def execute(self, batch: TextBatch) -> list[bytes]:
        vectors = np.stack([self._mean(row.token_ids) for row in batch.rows])
        return as_bytes(of_length_one(vectors) if self._normalizes else vectors)

    def _mean(self, token_ids: list[int]) -> Vectors:
        ids = np.array([token_id for token_id in token_ids if token_id != self._unknown], dtype=np.int64)
        if not len(ids):
            return np.zeros(self._vectors.shape[1], np.float32)
        mean: Vectors = (self._vectors[self._mapping[ids]] * self._weights[ids, None]).mean(axis=0)
        return mean


def _unknown_id(file: Path) -> int | None:
    tokenizer = read_json(file)
    model = tokenizer.get("model") or {}
    name, vocabulary = model.get("unk_token"), model.get("vocab")
    return vocabulary.get(name) if isinstance(vocabulary, dict) and name is not None else None
