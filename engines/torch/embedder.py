"""Vectors from transformers models: encoders and causal models by pooling, cross-encoders by their one label."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

from engines.base import EngineError, VectorEngine
from engines.options import read_positive_integers
from engines.sentence_files import Pooling, SentenceFiles, Vectors
from engines.steps import TextBatch, TextRow
from engines.torch import loader, memory
from engines.types import EngineConfig, EngineInfo, Task
from engines.vectors import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    activated,
    activation,
    as_bytes,
    check_no_quantize,
    padded,
    segments,
    vector_info,
)


@dataclass(slots=True, frozen=True)
class TorchVectorOptions:
    """`options` of a model for vectors with engine = "torch". 0 lets the engine choose."""

    threads: int = 0  # of the CPU's matrix products; default: all cores
    token_budget: int = 0  # tokens a batch, padding included; default 1024 on CPU, 8192 on a GPU


class TorchVectorEngine(VectorEngine):
    """Runs batches of texts on a CPU or a GPU. Loading happens in the constructor and raises EngineError."""

    def __init__(self, config: EngineConfig, task: Task) -> None:
        check_no_quantize(config, "embeddings by the torch engine")
        options = read_positive_integers(TorchVectorOptions, config.options, config.kind)
        self._num_threads = options.threads or os.cpu_count() or 1
        torch.set_num_threads(self._num_threads)
        folder = Path(config.path)
        self._files = SentenceFiles.read(folder, config.pooling)
        self._model = _load(folder, config.dtype, task)
        self._activation = activation(folder) if task is Task.SCORE else ""
        normalizes = task is Task.EMBED and self._files.normalizes
        self._takes_types = int(getattr(self._model.config, "type_vocab_size", 0) or 0) > 1
        dim = 1 if task is Task.SCORE else self._dim(folder)
        super().__init__(
            EngineInfo(
                max_model_len=_max_len(config, self._files, self._model),
                max_num_seqs=config.max_num_seqs,
                vocab_size=int(self._model.get_input_embeddings().weight.shape[0]),
                token_budget=options.token_budget or self._default_budget(),
                description=self._describe(task),
                task=task,
                vectors=vector_info(config, dim, normalized=normalizes),
            )
        )

    def _dim(self, folder: Path) -> int:
        """Tried out on a text of two tokens. Raises EngineError."""
        try:
            return len(self._vectors(TextBatch([TextRow([0, 0], 2)]))[0])
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"{folder}: {type(self._model).__name__} has no token vectors: {reason}") from error

    def _default_budget(self) -> int:
        return CPU_BATCH_TOKENS if self._model.device.type == "cpu" else GPU_BATCH_TOKENS

    def _describe(self, task: Task) -> str:
        how = f"{self._files.pooling} pooling" if task is Task.EMBED else self._activation
        dtype, device = str(self._model.dtype).removeprefix("torch."), self._model.device.type
        return f"torch {torch.__version__} {type(self._model).__name__} {dtype} on {device}, {how}"

    def lacks_memory(self, error: Exception) -> bool:
        return memory.is_short(error)

    def free_memory(self) -> None:
        memory.give_back()

    @torch.inference_mode()
    def execute(self, batch: TextBatch) -> list[bytes]:
        if torch.get_num_threads() != self._num_threads:  # the setting belongs to a thread
            torch.set_num_threads(self._num_threads)
        if self.info.task is Task.EMBED:
            return as_bytes(self._vectors(batch))
        inputs = self._inputs(batch)
        logits = _score(self._model, inputs, inputs["attention_mask"].sum(dim=1)).float().cpu().numpy()
        return as_bytes(activated(logits, self._activation))

    @torch.inference_mode()
    def _vectors(self, batch: TextBatch) -> Vectors:
        inputs = self._inputs(batch)
        states = self._model(**inputs).last_hidden_state.float()
        pooled = pool(states, inputs["attention_mask"].sum(dim=1), self._files.pooling)
        return self._files.finish(pooled.cpu().numpy())

    def _inputs(self, batch: TextBatch) -> dict[str, torch.Tensor]:
        """Padded at the right: the positions of a text's tokens are those that it has alone."""
        lengths = np.array([len(row.token_ids) for row in batch.rows])
        pad = getattr(self._model.config, "pad_token_id", None)
        ids = padded([row.token_ids for row in batch.rows], pad if isinstance(pad, int) and pad >= 0 else 0)
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        inputs = {"input_ids": self._tensor(ids), "attention_mask": self._tensor(mask)}
        if self._takes_types:
            inputs["token_type_ids"] = self._tensor(segments([row.num_first for row in batch.rows], lengths))
        return inputs

    def _tensor(self, values: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)


def pool(states: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[n, tokens, dim], padded at the right -> [n, dim]."""
    if pooling is Pooling.CLS:
        return states[:, 0]
    if pooling is Pooling.LAST:
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    mask = (torch.arange(states.shape[1], device=states.device) < lengths[:, None])[:, :, None]
    return (states * mask).sum(dim=1) / lengths[:, None]


def _score(model: Any, inputs: dict[str, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
    """[n, 1]. A causal classifier reads its last token; transformers would guess which that is from a padding id."""
    if (head := getattr(model, "score", None)) is not None:
        states = model.base_model(**inputs).last_hidden_state
        return torch.as_tensor(head(pool(states, lengths, Pooling.LAST)))
    return torch.as_tensor(model(**inputs).logits)


def _load(folder: Path, dtype: str, task: Task) -> Any:
    """Raises EngineError. Executes no code of the checkpoint and unpickles nothing."""
    loader.check_dtype(dtype)
    config = loader.load_config(folder)
    loader.check_files(config, folder)
    if config.is_encoder_decoder:
        raise EngineError(f"{folder}: model type {config.model_type} is an encoder with a decoder: not supported")
    if task is Task.SCORE and config.num_labels != 1:
        raise EngineError(f"{folder}: a classifier of {config.num_labels} labels: a cross-encoder has one")
    logging.disable_progress_bar()
    auto = AutoModelForSequenceClassification if task is Task.SCORE else AutoModel
    model, report = loader.load_weights(auto, folder, config, dtype)
    # What makes a pooled output of its own: we pool the token vectors, and a checkpoint may come without it.
    unused = "pooler." if task is Task.EMBED else "\0"
    report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith(unused)}
    loader.check_weights(report, folder)
    model.config.use_cache = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return loader.placed(model, device)


def _max_len(config: EngineConfig, files: SentenceFiles, model: Any) -> int:
    """Raises EngineError."""
    limit = _max_positions(model)
    if files.max_len:
        limit = min(files.max_len, limit or files.max_len)
    if not (config.max_model_len or limit):
        raise EngineError("max_model_len: the checkpoint states no limit, so it must be set")
    if limit and config.max_model_len > limit:
        raise EngineError(f"max_model_len: {config.max_model_len} exceeds the model's {limit} positions")
    return config.max_model_len or limit


def _max_positions(model: Any) -> int:
    """RoBERTa and its kin number positions from behind their padding's."""
    limit = loader.max_positions(model.config)
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return limit - padding - 1 if limit and padding is not None else limit
