"""What runs a loaded model on a GPU, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engines.constraint import MatcherSource
from engines.torch.gpu.fusion import fuse
from engines.torch.gpu.kv_cache import PagedMemory
from engines.torch.gpu.runner import GpuRunner
from engines.torch.gpu.step import Attention
from engines.torch.loader import LoadedModel

OpenAttention = Callable[[PagedMemory], Attention]


def by_kernels(paged: PagedMemory) -> Attention:
    from engines.torch.gpu.attention import TritonAttention  # a CPU does without Triton

    device = paged.tables.device
    return TritonAttention(paged, torch.cuda.get_device_properties(device).multi_processor_count)


def prepare(model: Any) -> None:
    """Before memory is planned: what can be fused is."""
    if model.device.type == "cuda":
        fuse(model)


def open_runner(
    loaded: LoadedModel,
    paged: PagedMemory,
    attention: Attention,
    max_num_seqs: int,
    grammars: MatcherSource | None = None,
) -> GpuRunner:
    """With its graphs captured, where there is a GPU."""
    runner = GpuRunner(loaded.model, paged, attention, loaded.vocab_size, max_num_seqs, grammars)
    if loaded.model.device.type == "cuda":
        runner.capture_graphs()
    return runner
