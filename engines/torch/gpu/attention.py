"""Paged attention by the kernels: how they are launched. Imported only where they run."""

from __future__ import annotations

import torch
from triton import next_power_of_2

from engines.torch.attention import LayerCall
from engines.torch.gpu.kernels import attend_kernel, merge_kernel, store_kernel
from engines.torch.gpu.kv_cache import LayerMemory, PagedMemory, StepRows

MAX_SPLITS = 32
_MIN_DOT = 16  # the least size of a matrix product
_DECODE_TILE, _CHUNK_ROWS, _CHUNK_TILE = 64, 64, 64  # none of them was ever timed


def num_splits(num_decodes: int, kv_heads: int, multiprocessors: int) -> int:
    """Parts that each decode's context is split into, a power of two: about two programs for each multiprocessor."""
    wanted = 2 * multiprocessors // (num_decodes * kv_heads)
    return min(MAX_SPLITS, 1 << max(0, wanted.bit_length() - 1))


class TritonAttention:
    """`multiprocessors`: of the device."""

    def __init__(self, memory: PagedMemory, multiprocessors: int) -> None:
        self._memory = memory
        self._multiprocessors = multiprocessors

    def store(self, layer: LayerMemory, key: torch.Tensor, value: torch.Tensor, rows: StepRows) -> None:
        """Keep [1, kv_heads, rows, dim] of each."""
        heads, key_dim = layer.keys.shape[2:]
        value_dim = layer.values.shape[3]
        key, value = _with_dense_rows(key), _with_dense_rows(value)
        store_kernel[(rows.num_rows, heads)](
            key,
            value,
            layer.keys,
            layer.values,
            self._memory.tables,
            rows.slots,
            rows.positions,
            key.stride(1),
            key.stride(2),
            value.stride(1),
            value.stride(2),
            self._memory.tables.stride(0),
            HEADS=heads,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            PADDED_KEY=next_power_of_2(key_dim),
            PADDED_VALUE=next_power_of_2(value_dim),
            PAGE=self._memory.block_size,
            num_warps=1,
        )

    def attend(self, layer: LayerMemory, call: LayerCall, rows: StepRows) -> torch.Tensor:
        """[rows, query_heads, value_dim]"""
        heads = call.query.shape[1]
        output = call.query.new_empty(rows.num_rows, heads, layer.values.shape[3])
        if rows.num_decodes:
            self._decode(layer, call, rows, output)
        if rows.num_chunks:
            self._chunks(layer, call, rows, output)
        return output

    def _decode(self, layer: LayerMemory, call: LayerCall, rows: StepRows, output: torch.Tensor) -> None:
        count, heads, dim = rows.num_decodes, *output.shape[1:]
        kv_heads = layer.keys.shape[2]
        splits = num_splits(count, kv_heads, self._multiprocessors)
        if splits == 1:
            self._launch(layer, call, rows, output, None, grid=(count, kv_heads, 1), splits=1)
            return
        parts = output.new_empty(count, heads, splits, dim, dtype=torch.float32)
        state = output.new_empty(2, count, heads, splits, dtype=torch.float32)
        self._launch(layer, call, rows, parts, state, grid=(count, kv_heads, splits), splits=splits)
        merge_kernel[(count * heads,)](
            parts,
            state[0],
            state[1],
            output,
            VALUE_DIM=dim,
            PADDED_VALUE=next_power_of_2(dim),
            SPLITS=splits,
            num_warps=1 if splits * dim <= 1024 else 4,
        )

    def _chunks(self, layer: LayerMemory, call: LayerCall, rows: StepRows, output: torch.Tensor) -> None:
        kv_heads = layer.keys.shape[2]
        block_q = _queries_a_block(_CHUNK_ROWS, call.group_size)
        blocks = (rows.num_rows - rows.num_decodes) // block_q + rows.num_chunks
        self._launch(layer, call, rows, output, None, grid=(blocks, kv_heads, 1), splits=1, block_q=block_q)

    def _launch(
        self,
        layer: LayerMemory,
        call: LayerCall,
        rows: StepRows,
        output: torch.Tensor,
        state: torch.Tensor | None,
        grid: tuple[int, int, int],
        splits: int,
        block_q: int = 0,
    ) -> None:
        """`block_q` 0: decodes."""
        kv_heads, key_dim = layer.keys.shape[2:]
        value_dim = layer.values.shape[3]
        state = output if state is None else state  # unused, but a kernel wants a pointer
        query = _with_dense_rows(call.query)
        is_wide = query.dtype == torch.float32
        tile = _CHUNK_TILE if block_q else _DECODE_TILE
        attend_kernel[grid](
            query,
            layer.keys,
            layer.values,
            self._memory.tables,
            rows.slots,
            rows.positions,
            rows.chunk_starts,
            query if call.sinks is None else call.sinks,
            output,
            state[0],
            state[-1],
            rows.num_chunks,
            call.scaling,
            query.stride(1),
            query.stride(2),
            self._memory.tables.stride(0),
            HEADS=kv_heads,
            GROUP=call.group_size,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            PADDED_KEY=max(_MIN_DOT, next_power_of_2(key_dim)),
            PADDED_VALUE=max(_MIN_DOT, next_power_of_2(value_dim)),
            PAGE=self._memory.block_size,
            BLOCK_M=max(_MIN_DOT, next_power_of_2(max(1, block_q) * call.group_size)),
            BLOCK_Q=max(1, block_q),
            BLOCK_N=tile // 2 if is_wide else tile,
            WINDOW=call.sliding_window or 0,
            SOFTCAP=call.softcap or 0.0,
            HAS_SINKS=call.sinks is not None,
            IS_DECODE=not block_q,
            SPLITS=splits,
            PRECISION="ieee" if is_wide else "tf32",  # of float32 operands alone
            num_warps=4,
            num_stages=2 if is_wide else 3,
        )


def _with_dense_rows(states: torch.Tensor) -> torch.Tensor:
    """The kernels read a row's numbers one behind another."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _queries_a_block(rows: int, group_size: int) -> int:
    return max(1, rows // group_size)
