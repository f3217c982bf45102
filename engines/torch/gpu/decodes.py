"""Decode batches that are padded to a bucket, and run as a CUDA graph where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engines.torch.gpu.buckets import GraphBuckets
from engines.torch.gpu.layout import StepLayout
from engines.torch.gpu.transfers import send

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class DecodeBatches:
    """`forward(tokens, slots, positions)`, each [size], gives logits [size, vocabulary]. The rows that pad a batch are
    token 0 at position 0 of the scratch slot, so that what they write belongs to nobody."""

    def __init__(self, forward: Forward, buckets: GraphBuckets, scratch_slot: int, device: torch.device) -> None:
        self.buckets = buckets
        self._forward = forward
        self._scratch_slot = scratch_slot
        self._device = device
        self._inputs = torch.zeros(3, buckets.sizes[-1], dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: dict[int, torch.Tensor] = {}

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def run(self, layout: StepLayout) -> torch.Tensor:
        """Logits [sequences, vocabulary], valid until the next run."""
        count = len(layout.scheduled)
        size = self.buckets.size_for(count)
        assert size is not None, "more sequences than run at once"
        inputs = self._fill(self.padded(layout, size))
        if size not in self._graphs:
            return self._forward(*inputs)[:count]
        self._graphs[size].replay()
        return self._logits[size][:count]

    def padded(self, layout: StepLayout, size: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        rows = np.zeros((3, size), dtype=np.int64)
        rows[1] = self._scratch_slot
        rows[:, : len(layout.scheduled)] = layout.tokens, layout.slots, layout.positions
        return rows

    def _fill(self, rows: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> torch.Tensor:
        inputs = self._views(rows.shape[1])
        inputs.copy_(send(rows, self._device))
        return inputs

    def _views(self, size: int) -> torch.Tensor:
        """Where the graph of this size reads."""
        return self._inputs.view(-1)[: 3 * size].view(3, size)

    @torch.inference_mode()
    def capture(self) -> None:
        """Record a graph for every bucket, all in one pool of memory. Each runs once before, so that its kernels are
        compiled."""
        pool = torch.cuda.graph_pool_handle()
        for size in self.buckets.largest_first:
            inputs = self._views(size)
            inputs.zero_()
            inputs[1] = self._scratch_slot
            self._forward(*inputs)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._logits[size] = self._forward(*inputs)
            self._graphs[size] = graph
        self.check_integrity()

    def forget(self) -> None:
        """Run without graphs."""
        self._graphs.clear()
        self._logits.clear()

    def check_integrity(self) -> None:
        """There are graphs for all buckets or for none."""
        self.buckets.check_integrity()
        assert set(self._graphs) in (set(), set(self.buckets.sizes))
        assert all(len(self._logits[size]) == size for size in self._graphs)
