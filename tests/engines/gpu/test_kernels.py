"""The attention kernels against plain torch. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.torch.attention import LayerCall
from engines.torch.backend import LayerShape
from engines.torch.gpu.kv_cache import PagedMemory, StepRows
from engines.torch.gpu.reference import ReferenceAttention
from engines.torch.gpu.step import DeviceStep

pytest.importorskip("triton", reason="the kernels need Triton, which has no build for this machine")
from engines.torch.gpu.attention import MAX_SPLITS, TritonAttention, num_splits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter multiplies bfloat16 matrices as if they were integers (Triton 3.9).
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
BLOCK_SIZE = 16
MAX_CONTEXT = 256
BORDERS = [1, 15, 16, 17, 31, 32, 33]


@dataclass
class Case:
    """`contexts`: of sequences that decode. `chunks`: (start, length) of others."""

    contexts: list[int] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    kv_heads: int = 2
    group: int = 2
    key_dim: int = 64
    value_dim: int = 0  # as the keys'
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 1  # few: contexts are not split


def make_memory(case: Case) -> PagedMemory:
    """Blocks in random order, and NaN wherever nothing was written."""
    sequences = len(case.contexts) + len(case.chunks)
    blocks = sequences * MAX_CONTEXT // BLOCK_SIZE
    shape = LayerShape(case.kv_heads, case.key_dim, case.value_dim or case.key_dim)
    memory = PagedMemory([shape], blocks, BLOCK_SIZE, sequences, MAX_CONTEXT, case.dtype, DEVICE)
    order = torch.randperm(blocks, device=DEVICE)
    memory.tables[:sequences] = order.view(sequences, -1).int()
    for pool in (memory.layers[0].keys, memory.layers[0].values):
        pool.fill_(float("nan"))
    return memory


def make_rows(case: Case) -> StepRows:
    slots, positions = [], []
    starts = [len(case.contexts)]
    for slot, context in enumerate(case.contexts):
        slots.append(slot)
        positions.append(context - 1)
    for slot, (start, length) in enumerate(case.chunks, start=len(case.contexts)):
        slots += [slot] * length
        positions += range(start, start + length)
        starts.append(starts[-1] + length)
    tensors = (torch.tensor(numbers, device=DEVICE) for numbers in (slots, positions, starts))
    slots_, positions_, starts_ = tensors
    return StepRows(slots_, positions_, len(case.contexts), starts_, len(case.chunks))


def fill_past(case: Case, memory: PagedMemory, rows: StepRows) -> None:
    """What earlier steps have written: every position before those of this step."""
    layer = memory.layers[0]
    firsts = [context - 1 for context in case.contexts] + [start for start, _ in case.chunks]
    for slot, first in enumerate(firsts):
        for pool in (layer.keys, layer.values):
            past = torch.arange(first, device=DEVICE)
            blocks = memory.tables[slot, past // BLOCK_SIZE].long()
            pool[blocks, past % BLOCK_SIZE] = torch.randn(first, *pool.shape[2:], device=DEVICE).to(case.dtype)


def states(heads: int, rows: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """As a model's view of its projection: [1, heads, rows, dim], row after row in memory."""
    return torch.randn(1, rows, heads, dim, device=DEVICE).to(dtype).transpose(1, 2)


def check(case: Case) -> None:
    torch.manual_seed(len(case.contexts) + case.key_dim)
    memory, rows = make_memory(case), make_rows(case)
    fill_past(case, memory, rows)
    value_dim = case.value_dim or case.key_dim
    sinks = torch.randn(case.kv_heads * case.group, device=DEVICE) if case.has_sinks else None
    call = LayerCall(
        SimpleNamespace(layer_idx=0),
        states(case.kv_heads * case.group, rows.num_rows, case.key_dim, case.dtype),
        states(case.kv_heads, rows.num_rows, case.key_dim, case.dtype),
        states(case.kv_heads, rows.num_rows, value_dim, case.dtype),
        case.key_dim**-0.5,
        case.window,
        case.softcap,
        sinks,
    )
    output = DeviceStep(TritonAttention(memory, case.multiprocessors), memory, rows).attend(call, {})
    written = [pool.clone() for pool in (memory.layers[0].keys, memory.layers[0].values)]
    expected = DeviceStep(ReferenceAttention(memory), memory, rows).attend(call, {})
    for ours, theirs in zip(written, (memory.layers[0].keys, memory.layers[0].values), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert output.shape == (1, rows.num_rows, case.kv_heads * case.group, value_dim)
    assert output.isfinite().all()
    error = (output.double() - expected.double()).norm() / expected.double().norm()
    assert error < (1e-5 if case.dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("multiprocessors", [1, 64], ids=["whole", "split"])
def test_decodes_around_page_borders(multiprocessors: int) -> None:
    check(Case(contexts=[*BORDERS, 63, 64, 65, 200], multiprocessors=multiprocessors))


@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_groups_and_head_sizes(group: int, dim: int) -> None:
    check(Case(contexts=[17, 70], chunks=[(0, 5), (30, 19)], kv_heads=1, group=group, key_dim=dim))


@pytest.mark.parametrize("length", BORDERS)
def test_chunks_around_page_borders(length: int) -> None:
    check(Case(chunks=[(0, length), (33, length)], kv_heads=1))


SPECIAL: list[dict[str, Any]] = [
    {"window": 16},
    {"window": 17, "has_sinks": True},
    {"window": 100},
    {"softcap": 2.0},
    {"has_sinks": True},
    {"softcap": 5.0, "window": 33, "has_sinks": True},
    {"key_dim": 24, "value_dim": 16},
    {"key_dim": 12},
    {"dtype": HALF, "window": 20},
    {"dtype": HALF, "has_sinks": True},
]


@pytest.mark.parametrize("special", SPECIAL, ids=str)
@pytest.mark.parametrize("multiprocessors", [1, 32], ids=["whole", "split"])
def test_windows_caps_sinks_and_types(special: dict[str, Any], multiprocessors: int) -> None:
    chunks = [(0, 18), (40, 35)] if multiprocessors == 1 else []
    check(Case(contexts=[1, 16, 17, 33, 130], chunks=chunks, multiprocessors=multiprocessors, **special))


def test_many_small_chunks() -> None:
    """Their query blocks are found by bisection."""
    check(Case(contexts=[5], chunks=[(3 * i, 2 + i % 40) for i in range(9)], kv_heads=1, group=8))


def test_splits_fill_the_device_and_are_powers_of_two() -> None:
    for decodes in (1, 2, 8, 64, 500):
        for heads in (1, 2, 8, 32):
            splits = num_splits(decodes, heads, 132)
            assert 1 <= splits <= MAX_SPLITS
            assert splits & (splits - 1) == 0
            assert splits == 1 or splits * decodes * heads <= 2 * 132
    assert num_splits(1, 8, 132) == MAX_SPLITS
