"""What lies in the folder of an exported model: its graph file and what config.json says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import EngineError
from engines.files import read_json

# As optimum, transformers.js and `penstock export-onnx` name them; the hub's repositories keep them under onnx/.
_GRAPHS = ("model.onnx", "decoder_model_merged.onnx")
_INT8_GRAPHS = ("model_quantized.onnx", "model_int8.onnx", "decoder_model_merged_quantized.onnx")


@dataclass(slots=True, frozen=True)
class GraphFile:
    path: Path
    is_int8: bool


def find_graph(folder: Path, *, int8: bool) -> GraphFile:
    """The graph to load; with `int8` a quantized one where there is one. Raises EngineError."""
    if not folder.is_dir():
        raise EngineError(f"path: no folder {folder}")
    for is_int8, names in ((True, _INT8_GRAPHS if int8 else ()), (False, _GRAPHS)):
        for path in (folder / place / name for name in names for place in ("", "onnx")):
            if path.is_file():
                return GraphFile(path, is_int8)
    if read_json(folder / "config.json").get("quantization_config"):
        raise EngineError(
            f"{folder}: its weights are quantized for the torch engine: --engine onnx takes exported models"
        )
    raise EngineError(f"{folder}: no model.onnx: export the model first: penstock export-onnx {folder} DIR")


class ModelConfig:
    """The few facts of config.json that a graph may leave open, under the names that transformers gives them."""

    def __init__(self, folder: Path) -> None:
        whole = read_json(folder / "config.json")
        self._values: dict[str, Any] = whole.get("text_config") or whole

    def _first(self, *names: str) -> int:
        return next((value for name in names if isinstance(value := self._values.get(name), int) and value > 0), 0)

    @property
    def vocab_size(self) -> int:
        """0, as all of these, where config.json does not say."""
        return self._first("vocab_size")

    @property
    def num_kv_heads(self) -> int:
        return self._first("num_key_value_heads", "num_kv_heads") or self._num_heads

    @property
    def head_dim(self) -> int:
        hidden = self._first("hidden_size", "n_embd", "d_model")
        return self._first("head_dim") or (hidden // self._num_heads if self._num_heads else 0)

    @property
    def max_positions(self) -> int:
        """The longest context whose positions are right for every row of a batch.

        longrope changes the frequencies of the whole batch as soon as one row is longer than the original context.
        """
        limit = self._first("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
        rope = self._values.get("rope_parameters") or self._values.get("rope_scaling") or {}
        if "longrope" in (rope.get("rope_type"), rope.get("type")):
            original = rope.get("original_max_position_embeddings") or self._first("original_max_position_embeddings")
            limit = min(limit, int(original)) if original else limit
        return limit

    @property
    def _num_heads(self) -> int:
        return self._first("num_attention_heads", "n_head", "num_heads")
