"""Is what the GPU path computes right? Each check answers the rows of the last table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from engines.steps import NewSequence, ScheduledSequence, StepPlan
from engines.torch.attention import LayerCall
from engines.torch.backend import LayerShape
from engines.torch.gpu.buckets import GraphBuckets
from engines.torch.gpu.kv_cache import PagedMemory, StepRows
from engines.torch.gpu.opening import OpenAttention
from engines.torch.gpu.reference import ReferenceAttention
from engines.torch.gpu.step import DeviceStep
from engines.types import SamplingParams
from loadtest.gpu.models import BLOCK_SIZE, Served, Shape, build, serve

BORDERS = [k * BLOCK_SIZE + d for k in (1, 2, 4, 8) for d in (-1, 0, 1)]
NEAR_TIE = 1e-3  # of two logits, whose order may differ with the order of additions


@dataclass(frozen=True, slots=True)
class Row:
    """Of the table that is printed last. `passed` None: a figure without a limit."""

    what: str
    figure: str
    limit: str = ""
    passed: bool | None = None


def edges(buckets: GraphBuckets) -> list[int]:
    """Every batch size next to that of a graph."""
    most = buckets.sizes[-1]
    return sorted({n for size in buckets.sizes for n in (size - 1, size, size + 1) if 1 <= n <= most})


def kernels(shape: Shape, sizes: Iterable[int], dtype: torch.dtype, open_attention: OpenAttention) -> Row:
    """Decodes at every batch size, and chunks, at contexts around page borders, whole and in a window, against plain
    torch in float32."""
    worst = 0.0
    for window in (None, 33):
        for count in sizes:
            contexts = [BORDERS[i % len(BORDERS)] for i in range(count)]
            worst = max(worst, _kernel_error(shape, contexts, [], window, dtype, open_attention))
        for length in (1, 15, 16, 17, 33):
            chunks = [(start, length) for start in (0, 31, 64)]
            worst = max(worst, _kernel_error(shape, [17, 64], chunks, window, dtype, open_attention))
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    return Row(
        f"attention kernels, {_name(dtype)}: worst relative error", f"{worst:.1e}", f"{limit:.0e}", worst < limit
    )


def _kernel_error(
    shape: Shape,
    contexts: list[int],
    chunks: list[tuple[int, int]],
    window: int | None,
    dtype: torch.dtype,
    open_attention: OpenAttention,
) -> float:
    """`contexts` of sequences that decode, (start, length) of chunks. The memory is NaN where nothing was written."""
    device = torch.get_default_device()
    sequences, longest = len(contexts) + len(chunks), 160
    layer = LayerShape(shape.kv_heads, shape.head_dim, shape.head_dim)
    blocks = sequences * longest // BLOCK_SIZE
    memory = PagedMemory([layer], blocks, BLOCK_SIZE, sequences, longest, dtype, device)
    memory.tables[:sequences] = torch.randperm(blocks).view(sequences, -1).int()
    spans = [(context - 1, context) for context in contexts] + [(start, start + length) for start, length in chunks]
    for pool in (memory.layers[0].keys, memory.layers[0].values):
        pool.fill_(float("nan"))
        for slot, (start, _) in enumerate(spans):
            past = torch.arange(start)
            pool[memory.tables[slot, past // BLOCK_SIZE].long(), past % BLOCK_SIZE] = torch.randn(
                start, shape.kv_heads, shape.head_dim
            ).to(dtype)
    lengths = torch.tensor([end - start for start, end in spans])
    slots = torch.arange(sequences).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(start, end) for start, end in spans])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])[len(contexts) :]
    rows = StepRows(slots, positions, len(contexts), starts, len(chunks))

    def states(heads: int) -> torch.Tensor:
        return torch.randn(1, rows.num_rows, heads, shape.head_dim).to(dtype).transpose(1, 2)

    call = LayerCall(
        SimpleNamespace(layer_idx=0),
        states(shape.heads),
        states(shape.kv_heads),
        states(shape.kv_heads),
        shape.head_dim**-0.5,
        window,
    )
    ours = DeviceStep(open_attention(memory), memory, rows).attend(call, {}).double()
    theirs = DeviceStep(ReferenceAttention(memory), memory, rows).attend(call, {}).double()
    error = float((ours - theirs).norm() / theirs.norm())
    return error if error == error else float("inf")


def batches(shape: Shape, most: int, layers: int, window: int | None, open_attention: OpenAttention) -> Row:
    """Greedy answers of a float32 model at every batch size next to a graph's, from prompts around page borders,
    against transformers' own forward pass over each answer."""
    model = build(shape, torch.float32, torch.get_default_device(), layers, window)
    served = serve(model, most, 160, open_attention)
    wrong = total = 0
    for count in edges(GraphBuckets.up_to(most)):
        answers = _answers(served, count)
        for prompt, answer in answers:
            wrong += _count_wrong(model, prompt, answer)
            total += len(answer)
    served.runner.check_integrity()
    kind = f", window {window}" if window else ""
    graphs = f"{served.runner.num_graphs} graphs"
    return Row(f"greedy tokens by {graphs}{kind}: wrong of {total}", str(wrong), "0", wrong == 0)


def _answers(served: Served, count: int, num_decodes: int = 3) -> list[tuple[list[int], list[int]]]:
    """One chunk and some decodes of each, a step launched before the last one is read."""
    table_len = served.memory.tables.shape[1]
    lengths = [BORDERS[i % len(BORDERS)] - 1 for i in range(count)]
    vocab = int(served.model.config.vocab_size)
    prompts = [torch.randint(vocab, (length,)).tolist() for length in lengths]
    tables = [list(range(i * table_len, (i + 1) * table_len)) for i in range(count)]
    sampling = SamplingParams(max_tokens=num_decodes + 1, temperature=0.0)
    new = [NewSequence(i, prompt, sampling) for i, prompt in enumerate(prompts)]
    plans = [StepPlan([[ScheduledSequence(i, 0, lengths[i], True, tables[i]) for i in range(count)]], new)]
    for step in range(num_decodes):
        plans.append(StepPlan([[ScheduledSequence(i, lengths[i] + step, 1, True, tables[i]) for i in range(count)]]))
    steps = [served.runner.launch(plan) for plan in plans]
    results = [served.runner.finish(step) for step in steps]
    served.runner.launch(StepPlan(finished=list(range(count))))
    return [(prompt, [result.tokens[i] for result in results]) for i, prompt in enumerate(prompts)]


@torch.inference_mode()
def _count_wrong(model: Any, prompt: list[int], answer: list[int]) -> int:
    """Tokens that the model, shown all before them, holds less likely than another, by more than rounding."""
    config = model.config
    ours, config._attn_implementation = config._attn_implementation, "eager"
    row = torch.tensor([prompt + answer[:-1]])
    try:
        logits = model(row, use_cache=False).logits[0, len(prompt) - 1 :]
    finally:
        config._attn_implementation = ours
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return int((logits.amax(dim=1) - chosen > NEAR_TIE).sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
