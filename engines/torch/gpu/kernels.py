"""Triton kernels of attention over paged KV memory. Imported only where they run: on CUDA, or in Triton's interpreter.

One kernel serves decodes and prefill chunks, in the manner of vLLM's unified attention: a program takes a block of
query rows that packs the heads of a GQA group, so that a decode fills a matrix instruction too. A decode's context can
be split over several programs (Flash-Decoding); a second kernel then merges what they found. Grids depend on sizes
that are fixed when a CUDA graph is captured: everything else is read from memory.

Memory of a layer is [blocks, PAGE, kv heads, dim]; `tables[slot, i]` is the block of the slot's positions
[i * PAGE, (i + 1) * PAGE). Row r of a step belongs to the sequence in `row_slots[r]` and has position `positions[r]`.
What lies behind a sequence's last position is never read, so it may be anything, NaN too.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def store_kernel(
    key,  # [heads, rows, KEY_DIM] by its strides
    value,
    keys,  # the layer's memory
    values,
    tables,
    row_slots,
    positions,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    table_stride,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_KEY: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Program (r, h) keeps row r's key and value of head h."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + row)
    block = tl.load(tables + tl.load(row_slots + row) * table_stride + position // PAGE).to(tl.int64)
    target = (block * PAGE + position % PAGE) * HEADS + head
    dims = tl.arange(0, PADDED_KEY)
    states = tl.load(key + head * key_head_stride + row * key_row_stride + dims, mask=dims < KEY_DIM)
    tl.store(keys + target * KEY_DIM + dims, states, mask=dims < KEY_DIM)
    dims = tl.arange(0, PADDED_VALUE)
    states = tl.load(value + head * value_head_stride + row * value_row_stride + dims, mask=dims < VALUE_DIM)
    tl.store(values + target * VALUE_DIM + dims, states, mask=dims < VALUE_DIM)


@triton.jit
def _chunk_of(chunk_starts, num_chunks, block, BLOCK_Q: tl.constexpr):
    """The chunk that query block number `block` lies in. Chunk i has the blocks from `chunk_starts[i] // BLOCK_Q + i`
    on: enough for any lengths, so that the grid follows from the number of rows and chunks."""
    origin = tl.load(chunk_starts)
    low: tl.int32 = 0
    high: tl.int32 = num_chunks
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(chunk_starts + middle) - origin) // BLOCK_Q + middle <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _capped(scores, SOFTCAP: tl.constexpr):
    """SOFTCAP * tanh(scores / SOFTCAP)"""
    ratio = scores / SOFTCAP
    decay = tl.exp(-2.0 * tl.abs(ratio))
    tanh = (1.0 - decay) / (1.0 + decay)
    return tl.where(ratio < 0, -tanh, tanh) * SOFTCAP


@triton.jit(do_not_specialize=["num_chunks"])
def attend_kernel(
    query,  # [query heads, rows, KEY_DIM] by its strides
    keys,
    values,
    tables,
    row_slots,
    positions,
    chunk_starts,  # first rows of the chunks, and the end of the last one; unused by decodes
    sinks,  # [query heads], unused without HAS_SINKS
    output,  # [rows, query heads, VALUE_DIM]; with SPLITS > 1 [rows, query heads, SPLITS, VALUE_DIM] in float32
    split_max,  # [rows, query heads, SPLITS], in units of log2
    split_sum,
    num_chunks,
    scale,
    query_head_stride,
    query_row_stride,
    table_stride,
    HEADS: tl.constexpr,  # of keys
    GROUP: tl.constexpr,  # query heads of each
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_KEY: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows of a matrix product: BLOCK_Q queries of GROUP heads each
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,  # keys at a time
    WINDOW: tl.constexpr,  # 0: all keys
    SOFTCAP: tl.constexpr,  # 0: none
    HAS_SINKS: tl.constexpr,
    IS_DECODE: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (b, h, s): query block b (of decodes: row b), key head h, part s of the context."""
    block, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if IS_DECODE:
        first_row = block
        num_queries = 1
    else:
        chunk = _chunk_of(chunk_starts, num_chunks, block, BLOCK_Q)
        start = tl.load(chunk_starts + chunk)
        skipped = (block - ((start - tl.load(chunk_starts)) // BLOCK_Q + chunk)) * BLOCK_Q
        first_row = start + skipped
        num_queries = tl.minimum(tl.load(chunk_starts + chunk + 1) - first_row, BLOCK_Q)
    if num_queries <= 0:
        return
    rows_m = tl.arange(0, BLOCK_M)
    queries = rows_m // GROUP
    heads = head * GROUP + rows_m % GROUP
    is_query = queries < num_queries
    rows = (first_row + queries).to(tl.int64)
    first_position = tl.load(positions + first_row).to(tl.int32)
    query_positions = first_position + queries
    end = first_position + num_queries  # of the keys that any of them sees

    key_dims = tl.arange(0, PADDED_KEY)
    value_dims = tl.arange(0, PADDED_VALUE)
    q = tl.load(
        query + heads[:, None] * query_head_stride + rows[:, None] * query_row_stride + key_dims[None, :],
        mask=is_query[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, PADDED_VALUE], tl.float32)
    if HAS_SINKS:  # noqa: SIM102 - decided when it is compiled, the other when it runs
        if split == 0:
            best = tl.load(sinks + heads, mask=is_query, other=0.0).to(tl.float32) * LOG2_E
            total = tl.full([BLOCK_M], 1.0, tl.float32)

    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    tiles = tl.cdiv(end - begin, BLOCK_N)
    tiles_a_split = tl.cdiv(tiles, SPLITS)
    table = tables + tl.load(row_slots + first_row) * table_stride
    for tile in range(split * tiles_a_split, tl.minimum((split + 1) * tiles_a_split, tiles)):
        tokens = begin + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        is_token = tokens < end
        blocks = tl.load(table + tokens // PAGE, mask=is_token, other=0).to(tl.int64)
        places = (blocks * PAGE + tokens % PAGE) * HEADS + head
        k = tl.load(
            keys + places[None, :] * KEY_DIM + key_dims[:, None],
            mask=is_token[None, :] & (key_dims < KEY_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        if SOFTCAP > 0:
            scores = _capped(scores, SOFTCAP)
        is_visible = (tokens[None, :] <= query_positions[:, None]) & is_query[:, None]
        if WINDOW > 0:
            is_visible &= tokens[None, :] > query_positions[:, None] - WINDOW
        scores = tl.where(is_visible, scores * LOG2_E, float("-inf"))
        better = tl.maximum(best, tl.max(scores, axis=1))
        origin = tl.where(better == float("-inf"), 0.0, better)  # of a row that has seen no key yet
        weights = tl.exp2(scores - origin[:, None])
        shrink = tl.exp2(best - origin)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(
            values + places[:, None] * VALUE_DIM + value_dims[None, :],
            mask=is_token[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        best = better

    places = (rows * HEADS * GROUP + heads) * SPLITS + split
    is_number = is_query[:, None] & (value_dims < VALUE_DIM)[None, :]
    if SPLITS == 1:
        result = result / tl.where(total > 0, total, 1.0)[:, None]
    else:
        tl.store(split_max + places, best, mask=is_query)
        tl.store(split_sum + places, total, mask=is_query)
    tl.store(
        output + places[:, None] * VALUE_DIM + value_dims[None, :], result.to(output.dtype.element_ty), mask=is_number
    )


@triton.jit
def merge_kernel(
    parts,  # what attend_kernel left
    split_max,
    split_sum,
    output,  # [rows, query heads, VALUE_DIM]
    VALUE_DIM: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program p: the parts of one row and head, number p of [rows, query heads]."""
    place = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, PADDED_VALUE)
    best = tl.load(split_max + place * SPLITS + splits)
    total = tl.load(split_sum + place * SPLITS + splits)
    shares = tl.exp2(best - tl.max(best, axis=0))
    part = tl.load(
        parts + (place * SPLITS + splits)[:, None] * VALUE_DIM + dims[None, :],
        mask=(dims < VALUE_DIM)[None, :],
        other=0.0,
    )
    merged = tl.sum(part * shares[:, None], axis=0) / tl.sum(total * shares, axis=0)
    tl.store(output + place * VALUE_DIM + dims, merged.to(output.dtype.element_ty), mask=dims < VALUE_DIM)
