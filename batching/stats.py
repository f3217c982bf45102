"""What a worker reports of itself. Counters only grow; gauges are of now."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from batching.buckets import Cells

BATCH_SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(slots=True)
class WorkerStats:
    # gauges
    ready: bool = True  # whether its engine can be reached
    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks: int = 0
    # counters
    steps: int = 0
    batch_size_sum: int = 0
    batch_size_buckets: list[int] = field(default_factory=lambda: [0] * (len(BATCH_SIZE_BOUNDS) + 1))
    prefill_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    attention_cells: int = 0
    padding_cells: int = 0
    ungrouped_padding_cells: int = 0  # what padding would add without length buckets
    preemptions: int = 0
    step_seconds: float = 0.0
    out_of_memory: int = 0  # steps that found too little, and were done in smaller ones
    restarts: int = 0  # of its process; the others count since the last one

    def observe_step(self, size: int, cells: Cells, ungrouped: Cells | None = None) -> None:
        self.attention_cells += cells.real
        self.padding_cells += cells.padding
        self.ungrouped_padding_cells += ungrouped.padding if ungrouped is not None else cells.padding
        self.steps += 1
        self.batch_size_sum += size
        self.batch_size_buckets[bisect_left(BATCH_SIZE_BOUNDS, size)] += 1
