"""Vectors of texts from a model that is served for generation: the same weights, without its KV memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from engines.base import EngineError
from engines.sentence_files import Pooling, SentenceFiles, Vectors
from engines.steps import TextBatch
from engines.torch.attention import LayerCall, causal, is_plainly_causal, masked
from engines.torch.embedder import pool
from engines.types import EngineConfig
from engines.vectors import as_bytes, padded, vector_info

log = logging.getLogger("penstock.engine")


class TextStep:
    """An AttentionStep of texts, which come padded at the right: [n, H, T, D]. Each token attends to those of its own
    text before it, and nothing is kept."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int | None, int], torch.Tensor] = {}  # by the layer's window and group size

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        if is_plainly_causal(call, call.query.shape[2]):
            output = causal(call.query, call.key, call.value, call)
        else:
            output = masked(call.query, call.key, call.value, self._mask(call), call)
        return output.transpose(1, 2)

    def _mask(self, call: LayerCall) -> torch.Tensor:
        key = (call.sliding_window, call.group_size)
        if key not in self._masks:
            self._masks[key] = _causal_mask(call)
        return self._masks[key]


def _causal_mask(call: LayerCall) -> torch.Tensor:
    """Additive, for queries folded by group: [1, 1, G * T, T]."""
    positions = torch.arange(call.query.shape[2], device=call.query.device)
    hidden = positions[None, :] > positions[:, None]
    if call.sliding_window is not None:
        hidden |= positions[None, :] <= positions[:, None] - call.sliding_window
    mask = torch.zeros(hidden.shape, dtype=call.query.dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf")).repeat(call.group_size, 1)[None, None]


class TextRunner:
    """Used from the engine's thread only, once it is made. Raises EngineError for a model without token vectors, or
    with files that ask for what we can't do."""

    def __init__(self, config: EngineConfig, model: Any) -> None:
        self._model = model.base_model  # without the head
        self._files = SentenceFiles.read(Path(config.path), config.pooling)
        self.info = vector_info(config, self._dim(), normalized=self._files.normalizes)

    @property
    def pooling(self) -> Pooling:
        return self._files.pooling

    def run(self, batch: TextBatch) -> list[bytes]:
        """As `VectorEngine.execute`."""
        return as_bytes(self._vectors([row.token_ids for row in batch.rows]))

    def _dim(self) -> int:
        """Tried out on a text of two tokens. Raises EngineError."""
        try:
            return int(self._vectors([[0, 0]]).shape[1])
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"{type(self._model).__name__} has no token vectors: {reason}") from error

    @torch.inference_mode()
    def _vectors(self, rows: list[list[int]]) -> Vectors:
        ids = torch.from_numpy(padded(rows)).to(self._model.device)
        output = self._model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1], device=ids.device).expand(ids.shape),
            use_cache=False,
            attention_step=TextStep(),
        )
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        pooled = pool(output.last_hidden_state.float(), lengths, self._files.pooling)
        return self._files.finish(pooled.cpu().numpy())


def open_texts(config: EngineConfig, model: Any) -> TextRunner | None:
    """None, and a warning, where the model has no embeddings: it generates all the same. Raises EngineError where the
    configuration speaks of them."""
    try:
        return TextRunner(config, model)
    except EngineError as error:
        if config.pooling != "auto" or config.matryoshka:
            raise
        log.warning("%s: no embeddings: %s", config.name or config.path, error)
        return None
