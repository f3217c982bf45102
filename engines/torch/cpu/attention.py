"""Attention by the kernel of kernels/attention.cpp, which reads paged KV memory where it lies.

What a query gets does not depend, bit for bit, on the rest of its step, nor on how its prompt was cut in chunks.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from engines.records import IntArray
from engines.torch.attention import LayerCall
from engines.torch.backend import AttentionBackend, KVSize, LayerShape
from engines.torch.cpu.library import library
from engines.torch.packing import PackedStep

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_KEY_GROUP = 16  # keys that lie together in a block


class _Step(ctypes.Structure):
    """`Step` of kernels/attention.h."""

    _fields_ = (
        ("starts", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("table_stride", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
    )


class _AttentionCall(ctypes.Structure):
    """`AttentionCall` of kernels/attention.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "pool", "sinks")),
        *((f"{name}_{step}", ctypes.c_int64) for name in ("query", "key", "value") for step in ("head", "token")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "key_dim", "value_dim", "window")),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


def _kernels() -> Any:
    kernels = library()
    assert kernels is not None, "ask KernelBackend.serves first"
    return kernels


def _token_elements(shape: LayerShape, dtype: torch.dtype) -> int:
    """As the kernel lays them out, which pads some dimensions."""
    count = _kernels().penstock_kv_elements
    count.restype = ctypes.c_int64
    per_head: int = count(ctypes.c_int64(shape.key_dim), ctypes.c_int64(shape.value_dim), _DTYPES[dtype])
    return shape.num_kv_heads * per_head


class KernelBackend(AttentionBackend):
    name = "C++ kernel"

    def __init__(self, shapes: list[LayerShape], size: KVSize) -> None:
        super().__init__(shapes, size)
        tokens = size.num_blocks * size.block_size
        # Zeros: the kernel's padding is read and never written.
        self.pools = [torch.zeros(tokens * _token_elements(shape, size.dtype), dtype=size.dtype) for shape in shapes]

    @classmethod
    def serves(cls, dtype: torch.dtype, block_size: int) -> bool:
        return dtype in _DTYPES and block_size % _KEY_GROUP == 0 and library() is not None

    @classmethod
    def token_bytes(cls, shapes: list[LayerShape], dtype: torch.dtype) -> int:
        return sum(_token_elements(shape, dtype) for shape in shapes) * dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return sum(pool.nbytes for pool in self.pools)

    def begin(self, step: PackedStep) -> KernelStep:
        return KernelStep(self, step.starts, step.lengths, step.tables)

    def scrub(self, blocks: IntArray) -> None:
        """Nothing to do: the kernel reads no slot that the sequence has not written."""


class KernelStep:
    """One step's attention: writes the new keys and values, and attends, layer by layer."""

    def __init__(self, backend: KernelBackend, starts: IntArray, lengths: IntArray, tables: IntArray) -> None:
        self.pools = backend.pools
        self._arrays = [np.ascontiguousarray(array, dtype=np.int64) for array in (starts, lengths, tables)]
        pointers = [array.ctypes.data for array in self._arrays]
        self._step = _Step(*pointers, len(starts), tables.shape[1], backend.block_size)
        self.reference = ctypes.byref(self._step)

    def attend(self, call: LayerCall, extra: dict[str, Any]) -> torch.Tensor:
        query, key, value = (_dense_heads(states[0]) for states in (call.query, call.key, call.value))
        out = query.new_empty((1, query.shape[1], query.shape[0], value.shape[2]))
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        arguments = _AttentionCall(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            self.pools[call.module.layer_idx].data_ptr(),
            None if sinks is None else sinks.data_ptr(),
            *(stride for states in (query, key, value) for stride in states.stride()[:2]),
            query.shape[0],
            key.shape[0],
            query.shape[2],
            value.shape[2],
            call.sliding_window or 0,
            call.scaling,
            call.softcap or 0.0,
            _DTYPES[query.dtype],
        )
        if not _kernels().penstock_attend(self.reference, ctypes.byref(arguments)):
            raise MemoryError("no room for attention")
        return out


def _dense_heads(states: torch.Tensor) -> torch.Tensor:
    """[heads, tokens, dim] with the elements of a head side by side."""
    return states if states.stride(2) == 1 else states.contiguous()
