"""Decoder layers as Llama has them, run by one call of the C++ kernels: no Python between the layers.

A model is only taken if each of its layers, tried out on random numbers, gives what its own code gives.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from engines.torch.attention import AttentionStep, LayerCall
from engines.torch.backend import KVSize, LayerShape
from engines.torch.cpu.attention import KernelBackend, KernelStep
from engines.torch.cpu.library import library
from engines.torch.cpu.llama import LINEARS, NORMS, LlamaLayer, UnlikeLlama

log = logging.getLogger("penstock.engine")

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
# Of what a layer adds, as root mean squares: bfloat16 rounds differently in another order, and what is quantized after
# that may fall to the next of few numbers.
_TOLERANCE, _INT8_TOLERANCE = 0.02, 0.1
_TRIAL = (19, 1, 7)  # tokens of the sequences that are tried out
_LANES = 16  # numbers that the kernels take at a time


class _Layer(ctypes.Structure):
    """`Layer` of kernels/decoder.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*LINEARS, *NORMS, "sinks", "pool")),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class _Stack(ctypes.Structure):
    """`Stack` of kernels/decoder.cpp."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "hidden", "inner", "heads", "kv_heads", "head_dim", "rotary_dim")
        ),
        ("epsilon", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class _Buffers(ctypes.Structure):
    """`Buffers` of kernels/decoder.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "normed", "qkv", "attended", "gate", "up", "cos", "sin")),
        ("quantized", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
    )


class Decoder:
    """Layers as the kernels see them. `calls` are their attention's, of any step."""

    def __init__(self, layers: Sequence[LlamaLayer], calls: Sequence[LayerCall]) -> None:
        """Raises UnlikeLlama."""
        first, call = layers[0], calls[0]
        self._layers, self._dtype = layers, call.query.dtype
        self._sinks = [None if c.sinks is None else c.sinks.detach().float().contiguous() for c in calls]
        self._c_layers = (_Layer * len(layers))(*map(self._c_layer, layers, calls, self._sinks))
        self._pools: list[torch.Tensor] = []
        self.head_dim, self.heads, self.kv_heads = call.query.shape[3], call.query.shape[1], call.key.shape[1]
        self.hidden, self.inner = first.hidden, first.inner
        epsilons = {epsilon for layer in layers for epsilon in layer.epsilons}
        if len(epsilons) != 1 or call.value.shape[3] != self.head_dim:
            raise UnlikeLlama("its norms or its heads are not all alike")
        if self.hidden % _LANES or self.inner % _LANES or self.head_dim % _LANES:
            raise UnlikeLlama(f"its sizes are no multiples of {_LANES}")
        self._epsilon = epsilons.pop()
        self._width = max(linear.weight.padded_inputs for layer in layers for linear in layer.linears)

    def _c_layer(self, layer: LlamaLayer, call: LayerCall, sinks: torch.Tensor | None) -> _Layer:
        pointers = [ctypes.addressof(linear.weight.c) for linear in layer.linears]
        pointers += [0 if kept is None else kept.data_ptr() for kept in (*layer.norms, sinks)]
        return _Layer(*pointers, 0, call.sliding_window or 0, call.scaling, call.softcap or 0.0)

    def run(
        self, x: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor], step: KernelStep, layers: slice
    ) -> torch.Tensor:
        """What these layers make of `x` [1, T, hidden]; `positions` are cosines and sines [1, T, rotary dim]."""
        self._attach(step.pools)
        cos, sin = (values.to(self._dtype).contiguous() for values in positions)
        first, end, _ = layers.indices(len(self._layers))
        x = x.clone(memory_format=torch.contiguous_format)
        rows, size = x.shape[1], ctypes.sizeof(_Layer)
        queries, pairs = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = (self.hidden, queries + 2 * pairs, queries, self.inner, self.inner)
        scratch = [torch.empty(rows * width, dtype=self._dtype) for width in widths]
        quantized, scales = torch.empty(rows * self._width, dtype=torch.int8), torch.empty(rows)
        kept = (x, *scratch, cos, sin, quantized, scales)
        buffers = _Buffers(*(tensor.data_ptr() for tensor in kept), rows)
        stack = _Stack(
            ctypes.addressof(self._c_layers) + first * size,
            end - first,
            self.hidden,
            self.inner,
            self.heads,
            self.kv_heads,
            self.head_dim,
            cos.shape[-1],
            self._epsilon,
            _DTYPES[self._dtype],
        )
        kernels = library()
        assert kernels is not None, "there are packed weights"
        if not kernels.penstock_decode(ctypes.byref(stack), ctypes.byref(buffers), step.reference):
            raise MemoryError("no room for attention")
        return x

    def _attach(self, pools: list[torch.Tensor]) -> None:
        if pools is not self._pools:
            self._pools = pools
            for layer, pool in zip(self._c_layers, pools, strict=True):
                layer.pool = pool.data_ptr()


class DecoderStack(nn.Module):
    """Stands in for a model's list of layers. Steps over the kernels' KV memory go through `decoder`; for others, as
    texts to embed, there are the layers themselves, over the same weights."""

    def __init__(self, layers: nn.ModuleList, decoder: Decoder) -> None:
        super().__init__()
        self.layers, self.decoder = layers, decoder

    def forward(
        self, hidden_states: torch.Tensor, *, position_embeddings: Any, attention_step: AttentionStep, **extra: Any
    ) -> torch.Tensor:
        if isinstance(attention_step, KernelStep):
            return self.decoder.run(hidden_states, position_embeddings, attention_step, slice(None))
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, position_embeddings=position_embeddings, attention_step=attention_step, **extra
            )
        return hidden_states


class _Recorder:
    """An AttentionStep that notes how it was called."""

    def __init__(self, step: AttentionStep) -> None:
        self._step = step
        self.calls: dict[int, LayerCall] = {}

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        self.calls[call.module.layer_idx] = call
        return self._step.attend(call, extra)


def fuse(model: Any, shapes: list[LayerShape]) -> bool:
    """Have the kernels run all of a model's layers, if these are as Llama's; whether they do now."""
    try:
        layers = model.base_model.layers
        model.base_model.layers = nn.ModuleList([DecoderStack(layers, _tried(model, layers, shapes))])
    except (UnlikeLlama, AttributeError) as error:
        log.info("%s: its layers run one by one: %s", type(model).__name__, error)
        return False
    return True


@torch.inference_mode()
def _tried(model: Any, layers: nn.ModuleList, shapes: list[LayerShape]) -> Decoder:
    """Raises UnlikeLlama."""
    parts = [LlamaLayer(layer) for layer in layers]
    seen: list[tuple[torch.Tensor, Any, torch.Tensor]] = []
    hooks = [layer.register_forward_hook(_note(seen), with_kwargs=True) for layer in layers]
    recorder = _Recorder(_trial_step(shapes, model.dtype))
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (1, sum(_TRIAL)), generator=_generator())
    positions = torch.cat([torch.arange(count) for count in _TRIAL])[None]
    try:
        model.base_model(input_ids=tokens, position_ids=positions, use_cache=False, attention_step=recorder)
    finally:
        for hook in hooks:
            hook.remove()
    decoder = Decoder(parts, [recorder.calls[index] for index in range(len(layers))])
    step = _trial_step(shapes, model.dtype)
    for index, (x, rotation, expected) in enumerate(seen):
        tolerance = _INT8_TOLERANCE if parts[index].is_int8 else _TOLERANCE
        _compare(index, decoder.run(x, rotation, step, slice(index, index + 1)) - expected, expected - x, tolerance)
    return decoder


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _note(seen: list[tuple[torch.Tensor, Any, torch.Tensor]]) -> Any:
    def hook(layer: Any, arguments: Any, named: dict[str, Any], output: Any) -> None:
        rotation = named.get("position_embeddings")
        if not isinstance(output, torch.Tensor) or not isinstance(rotation, tuple):
            raise UnlikeLlama("its layers are called otherwise")
        if rotation[0].shape[-1] % (2 * _LANES):
            raise UnlikeLlama(f"{rotation[0].shape[-1]} of a head's numbers have positions")
        seen.append((arguments[0], rotation, output))

    return hook


def _trial_step(shapes: list[LayerShape], dtype: torch.dtype) -> KernelStep:
    blocks = -(-max(_TRIAL) // _LANES)
    size = KVSize(blocks * len(_TRIAL), _LANES, dtype, torch.device("cpu"))
    tables = np.arange(blocks * len(_TRIAL)).reshape(len(_TRIAL), blocks)
    return KernelStep(KernelBackend(shapes, size), np.zeros(len(_TRIAL), dtype=np.int64), np.array(_TRIAL), tables)


def _compare(index: int, difference: torch.Tensor, added: torch.Tensor, tolerance: float) -> None:
    off, size = (values.float().square().mean().sqrt().item() for values in (difference, added))
    if not off <= tolerance * size:
        raise UnlikeLlama(f"layer {index} gives something else: {off:.2g} off, of {size:.2g}")
