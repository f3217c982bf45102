"""A decoder with a KV cache as optimum exports it, recognised from its inputs and outputs.

    input_ids [batch, tokens], attention_mask [batch, past + tokens], position_ids [batch, tokens],
    past_key_values.N.key / .value [batch, kv heads, past, dim], use_cache_branch [1] (merged decoders)
    -> logits [batch, tokens, vocabulary], present.N.key / .value [batch, kv heads, past + tokens, dim]

All inputs but the first and the cache's may be missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.base import EngineError
from engines.onnx.folder import ModelConfig
from engines.onnx.session import Array, Session, Tensor
from engines.records import IntArray

_PAST = re.compile(r"past_key_values\.(.+)")
_EMBEDDINGS = ("sentence_embedding", "last_hidden_state")
_OPTIONAL = ("attention_mask", "position_ids", "use_cache_branch")
EXPORT = "export it as text-generation-with-past, as penstock export-onnx does"


@dataclass(slots=True, frozen=True)
class CacheTensor:
    """One layer's keys, or its values: what goes in, what comes out, and what a token takes."""

    past: str
    present: str
    num_heads: int
    dim: int


@dataclass(slots=True, frozen=True)
class DecoderBatch:
    """One run: row i computes `token_ids[i, : lengths[i]]` at the positions from `starts[i]` on.

    `past` has the cache of the tokens before, one array [n, heads, width, dim] a CacheTensor, each row at the right:
    the padding is left of the cache and right of the tokens. `token_ids` [n, tokens]; `starts`, `lengths` [n].
    """

    token_ids: IntArray
    starts: IntArray
    lengths: IntArray
    past: list[Array]

    @property
    def width(self) -> int:
        """Tokens of the padded cache."""
        return int(self.past[0].shape[2])

    def attention_mask(self) -> IntArray:
        """[n, width + tokens]: 1 where there is a token."""
        columns = np.arange(self.width + self.token_ids.shape[1])
        first, end = self.width - self.starts, self.width + self.lengths
        return ((columns >= first[:, None]) & (columns < end[:, None])).astype(np.int64)

    def position_ids(self) -> IntArray:
        """[n, tokens]; padding repeats the last position, since a model may look positions up in a table."""
        columns = np.arange(self.token_ids.shape[1])
        return self.starts[:, None] + np.minimum(columns, self.lengths[:, None] - 1)


@dataclass(slots=True, frozen=True)
class DecoderOutput:
    """`logits` [n, tokens, vocabulary]; `present` as `past`, with the new tokens at the right."""

    logits: Array
    present: list[Array]


class Decoder:
    """A session whose graph is a decoder. Raises EngineError for any other."""

    def __init__(self, session: Session, config: ModelConfig) -> None:
        self._session = session
        self._check_inputs()
        self.cache = [
            self._cache_tensor(tensor, config) for name, tensor in session.inputs.items() if _PAST.match(name)
        ]
        if not self.cache:
            raise EngineError(f"no input past_key_values.0.key: the model has no KV cache: {EXPORT}")
        self.dtype = self._cache_dtype()
        self.vocab_size = self._output("logits").shape[-1] or config.vocab_size
        if not self.vocab_size:
            raise EngineError("neither the shape of logits nor config.json says vocab_size")
        self.is_merged = "use_cache_branch" in session.inputs
        self.has_mask = "attention_mask" in session.inputs
        self._dtypes = {name: tensor.dtype for name, tensor in session.inputs.items()}
        self._outputs = ["logits", *(tensor.present for tensor in self.cache)]

    def _check_inputs(self) -> None:
        inputs, outputs = self._session.inputs, self._session.outputs
        if "logits" not in outputs and (found := [name for name in _EMBEDDINGS if name in outputs]):
            raise EngineError(f"the model computes embeddings ({found[0]}), no text: {EXPORT}")
        if "input_ids" not in inputs:
            raise EngineError(f"no input input_ids, it has {', '.join(inputs)}: {EXPORT}")
        _check_float(self._output("logits"))
        unknown = [name for name in inputs if name not in ("input_ids", *_OPTIONAL) and not _PAST.match(name)]
        if unknown:
            raise EngineError(f"the input {unknown[0]} is none of a decoder's: {EXPORT}")

    def _output(self, name: str) -> Tensor:
        if name not in self._session.outputs:
            raise EngineError(f"no output {name}: {EXPORT}")
        return self._session.outputs[name]

    def _cache_tensor(self, tensor: Tensor, config: ModelConfig) -> CacheTensor:
        if len(tensor.shape) != 4:
            raise EngineError(f"{tensor.name} has {len(tensor.shape)} dimensions, expected batch, heads, past, dim")
        num_heads, dim = tensor.shape[1] or config.num_kv_heads, tensor.shape[3] or config.head_dim
        if not (num_heads and dim):
            raise EngineError(f"neither the shape of {tensor.name} nor config.json says its heads and their size")
        present = _PAST.sub(r"present.\1", tensor.name)
        if self._output(present).type != tensor.type:
            raise EngineError(f"{present} is a {self._output(present).type}, but {tensor.name} a {tensor.type}")
        return CacheTensor(tensor.name, present, num_heads, dim)

    def _cache_dtype(self) -> np.dtype[np.generic]:
        tensors = [self._session.inputs[tensor.past] for tensor in self.cache]
        other = next((tensor for tensor in tensors if tensor.dtype != tensors[0].dtype), None)
        if other is not None:
            raise EngineError(f"{other.name} is a {other.type}, but {tensors[0].name} a {tensors[0].type}")
        _check_float(tensors[0])
        return tensors[0].dtype

    @property
    def token_bytes(self) -> int:
        """What the cache of one token takes."""
        return int(sum(tensor.num_heads * tensor.dim for tensor in self.cache) * self.dtype.itemsize)

    def empty_past(self, rows: int, width: int = 0) -> list[NDArray[np.generic]]:
        """A cache of zeros."""
        return [np.zeros((rows, tensor.num_heads, width, tensor.dim), dtype=self.dtype) for tensor in self.cache]

    def run(self, batch: DecoderBatch) -> DecoderOutput:
        feeds: dict[str, Array] = {"input_ids": batch.token_ids}
        if self.has_mask:
            feeds["attention_mask"] = batch.attention_mask()
        if "position_ids" in self._dtypes:
            feeds["position_ids"] = batch.position_ids()
        if self.is_merged:
            feeds["use_cache_branch"] = np.array([batch.width > 0])
        feeds |= {tensor.past: past for tensor, past in zip(self.cache, batch.past, strict=True)}
        converted = {name: array.astype(self._dtypes[name], copy=False) for name, array in feeds.items()}
        logits, *present = self._session.run(self._outputs, converted)
        return DecoderOutput(logits, present)


def _check_float(tensor: Tensor) -> None:
    if not np.issubdtype(tensor.dtype, np.floating):
        raise EngineError(f"{tensor.name} is a {tensor.type}, expected tensor(float) or tensor(float16)")
