"""Vectors by ONNX Runtime.

The graph gives `sentence_embedding` [batch, dim], or `last_hidden_state` [batch, tokens, dim] that is pooled here as
the folder's sentence-transformers files say, or, a cross-encoder, `logits` [batch, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.base import EngineError, VectorEngine
from engines.onnx.engine import open_session
from engines.onnx.folder import ModelConfig, find_graph
from engines.onnx.session import VERSION, Array, Session, is_short
from engines.options import read_positive_integers
from engines.sentence_files import SentenceFiles, Vectors, of_length_one
from engines.steps import TextBatch
from engines.types import EngineConfig, EngineInfo, Task
from engines.vectors import (
    CPU_BATCH_TOKENS,
    activated,
    activation,
    as_bytes,
    padded,
    pool,
    segments,
    vector_info,
)

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_OUTPUTS = {Task.EMBED: ("sentence_embedding", "last_hidden_state"), Task.SCORE: ("logits",)}
_EXPORTS = {Task.EMBED: "feature-extraction", Task.SCORE: "text-classification"}


@dataclass(slots=True, frozen=True)
class OnnxVectorOptions:
    """`options` of a model for vectors with engine = "onnx". 0 lets the engine choose."""

    threads: int = 0  # default: all cores
    token_budget: int = 0  # tokens a batch, padding included; default 1024


class OnnxVectorEngine(VectorEngine):
    """Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig, task: Task) -> None:
        folder = Path(config.path)
        int8 = config.quantize == "int8"
        graph = find_graph(folder, int8=int8)
        self._files = SentenceFiles.read(folder, config.pooling)
        self._activation = activation(folder) if task is Task.SCORE else ""
        options = read_positive_integers(OnnxVectorOptions, config.options, config.kind)
        self._session = open_session(graph, options.threads, int8=int8)
        try:
            self._output = _output(self._session, task)
            dim = self._dim()
        except EngineError as error:
            raise EngineError(f"{graph.path}: {error}") from error
        normalizes = task is Task.EMBED and self._files.normalizes
        super().__init__(
            EngineInfo(
                max_model_len=_max_len(config, self._files, folder),
                max_num_seqs=config.max_num_seqs,
                vocab_size=ModelConfig(folder).vocab_size,
                token_budget=options.token_budget or CPU_BATCH_TOKENS,
                description=f"onnxruntime {VERSION} {graph.path.name} {self._output}, {config.quantize}",
                task=task,
                vectors=vector_info(config, dim, normalized=normalizes),
            )
        )

    def _dim(self) -> int:
        """Of its vectors, as a run of one token shows. Raises EngineError."""
        dim = int(self._compute([[0]], [1]).shape[-1])
        if self._activation and dim != 1:
            raise EngineError(f"a classifier of {dim} labels: a cross-encoder has one")
        return dim

    def lacks_memory(self, error: Exception) -> bool:
        return is_short(error)

    def execute(self, batch: TextBatch) -> list[bytes]:
        vectors = self._compute([row.token_ids for row in batch.rows], [row.num_first for row in batch.rows])
        return as_bytes(activated(vectors, self._activation) if self._activation else vectors)

    def _compute(self, rows: list[list[int]], num_first: list[int]) -> Vectors:
        """Padded at the right, where a mask hides it."""
        lengths = np.array([len(row) for row in rows])
        ids = padded(rows)
        columns = np.arange(ids.shape[1])
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "attention_mask": columns < lengths[:, None],
            "token_type_ids": segments(num_first, lengths),
            "position_ids": np.broadcast_to(columns, ids.shape),
        }
        inputs = {name: feeds[name].astype(tensor.dtype, copy=False) for name, tensor in self._session.inputs.items()}
        (output,) = self._session.run([self._output], inputs)
        vectors: Vectors = output.astype(np.float32, copy=False)
        if vectors.ndim == 3:
            return self._files.finish(pool(vectors, lengths, self._files.pooling))
        # A sentence_embedding has all layers behind it, and perhaps has not been normalized; a logit is what it is.
        return vectors if self._activation or not self._files.normalizes else of_length_one(vectors)


def _max_len(config: EngineConfig, files: SentenceFiles, folder: Path) -> int:
    """Raises EngineError."""
    limit = config.max_model_len or files.max_len or ModelConfig(folder).max_positions
    if not limit:
        raise EngineError("max_model_len: the folder states no limit, so it must be set")
    return limit


def _output(session: Session, task: Task) -> str:
    """The output that holds the vectors. Raises EngineError."""
    if any(name.startswith("past_key_values.") for name in session.inputs):
        raise EngineError("the model is a decoder with a KV cache: it continues text and has no embeddings")
    found = [name for name in _OUTPUTS[task] if name in session.outputs]
    if not found:
        raise EngineError(
            f"no output {' or '.join(_OUTPUTS[task])}, it has {', '.join(session.outputs)}: "
            f"export it for {_EXPORTS[task]}"
        )
    unknown = [name for name in session.inputs if name not in _INPUTS]
    if unknown or "input_ids" not in session.inputs:
        raise EngineError(f"inputs {', '.join(session.inputs)}: expected {', '.join(_INPUTS)}")
    return found[0]
