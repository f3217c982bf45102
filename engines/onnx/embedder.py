"""Sentence embeddings on ONNX Runtime: token ids in, vectors out.

The graph gives `sentence_embedding` [batch, dim], or `last_hidden_state` [batch, tokens, dim] that is pooled here as
the folder's sentence-transformers files say: 1_Pooling/config.json, and a Normalize module in modules.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.onnx.engine import OnnxOptions, open_session
from engines.onnx.folder import ModelConfig, find_graph, read_json
from engines.onnx.session import Array, Session
from engines.options import read_positive_integers
from engines.records import IntArray
from engines.types import EngineConfig

Vectors = NDArray[np.float32]
_BATCH_TOKENS = 4096  # with padding
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class Pooling(StrEnum):
    """How token vectors become one. The values are those of sentence-transformers."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "lasttoken"


@dataclass(slots=True, frozen=True)
class SentenceFiles:
    """What a sentence-transformers folder says; a plain transformers folder means the mean, as it is."""

    pooling: Pooling
    normalizes: bool

    @classmethod
    def read(cls, folder: Path) -> SentenceFiles:
        """Raises EngineError for a pooling that is none of ours."""
        modules_file = folder / "modules.json"
        normalizes = modules_file.is_file() and ".Normalize" in modules_file.read_text(encoding="utf-8")
        file = folder / "1_Pooling" / "config.json"
        config = read_json(file)
        modes = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
        modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes if mode != "include_prompt"]
        named = config.get("pooling_mode") or (modes[0] if modes else Pooling.MEAN)
        if named not in set(Pooling) or len(modes) > 1:
            raise EngineError(f"{file}: pooling {', '.join(modes) or named}: expected one of {', '.join(Pooling)}")
        return cls(Pooling(named), normalizes)


class OnnxEmbedder:
    """Not thread-safe. Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig) -> None:
        folder = Path(config.path)
        int8 = config.quantize == "int8"
        graph = find_graph(folder, int8=int8)
        self._files = SentenceFiles.read(folder)
        options = read_positive_integers(OnnxOptions, config.options, config.kind)
        self._session = open_session(graph, options.threads, int8=int8)
        try:
            self._output = _output(self._session)
        except EngineError as error:
            raise EngineError(f"{graph.path}: {error}") from error
        limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        self.max_len = config.max_model_len or limit or ModelConfig(folder).max_positions  # tokens; 0: no limit
        self.dim: int | None = self._session.outputs[self._output].shape[-1]

    def embed(self, batch: list[list[int]]) -> Vectors:
        """One vector [dim] a row of token ids. Raises ValueError for a row that is empty or too long."""
        for row in batch:
            if not row or (self.max_len and len(row) > self.max_len):
                raise ValueError(f"a text of {len(row)} tokens: expected 1 to {self.max_len or 'any number'}")
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        vectors: dict[int, Vectors] = {}
        for part in _parts(order, [len(row) for row in batch]):
            vectors |= zip(part, self._run([batch[i] for i in part]), strict=True)
        return np.stack([vectors[i] for i in range(len(batch))]) if batch else np.zeros((0, self.dim or 0), np.float32)

    def _run(self, rows: list[list[int]]) -> Vectors:
        """Padded at the right, where a mask hides it."""
        lengths = np.array([len(row) for row in rows])
        columns = np.arange(lengths.max())
        mask = (columns < lengths[:, None]).astype(np.int64)
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask == 1] = np.concatenate(rows)
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.broadcast_to(columns, ids.shape),
        }
        inputs = {name: feeds[name].astype(tensor.dtype, copy=False) for name, tensor in self._session.inputs.items()}
        (output,) = self._session.run([self._output], inputs)
        vectors = output.astype(np.float32, copy=False)
        if vectors.ndim == 3:
            vectors = _pool(vectors, mask, lengths, self._files.pooling)
        return _normalized(vectors) if self._files.normalizes else vectors


def _output(session: Session) -> str:
    """The output that holds the vectors. Raises EngineError."""
    if any(name.startswith("past_key_values.") for name in session.inputs):
        raise EngineError("the model is a decoder with a KV cache: it continues text and has no embeddings")
    found = [name for name in ("sentence_embedding", "last_hidden_state") if name in session.outputs]
    if not found:
        raise EngineError(
            f"no output sentence_embedding or last_hidden_state, it has {', '.join(session.outputs)}: "
            "export it for feature-extraction"
        )
    unknown = [name for name in session.inputs if name not in _INPUTS]
    if unknown or "input_ids" not in session.inputs:
        raise EngineError(f"inputs {', '.join(session.inputs)}: expected {', '.join(_INPUTS)}")
    return found[0]


def _parts(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Rows, shortest first, cut so that no part has more than `_BATCH_TOKENS` when padded to its longest."""
    parts: list[list[int]] = []
    for i in order:
        if parts and (len(parts[-1]) + 1) * lengths[i] <= _BATCH_TOKENS:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def _pool(states: Vectors, mask: IntArray, lengths: IntArray, pooling: Pooling) -> Vectors:
    """[n, tokens, dim] -> [n, dim]."""
    if pooling is Pooling.CLS:
        return states[:, 0]
    if pooling is Pooling.LAST:
        return states[np.arange(len(states)), lengths - 1]
    pooled: Vectors = np.einsum("ntd,nt->nd", states, mask.astype(np.float32)) / lengths[:, None].astype(np.float32)
    return pooled


def _normalized(vectors: Vectors) -> Vectors:
    """Of length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalized: Vectors = vectors / np.maximum(norms, 1e-12)
    return normalized
