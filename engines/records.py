"""What a step engine keeps of a sequence between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class SequenceRecord:
    """The engine's own record of a sequence: every known token, and its block table as an array."""

    token_ids: list[int]
    blocks: IntArray = field(default_factory=lambda: np.zeros(8, dtype=np.int64))
    num_blocks: int = 0

    def update_blocks(self, block_table: list[int]) -> None:
        """Take over what was appended to the plan's table since the last step."""
        added = len(block_table) - self.num_blocks
        if added <= 0:
            return
        if len(block_table) > len(self.blocks):
            self.blocks = np.resize(self.blocks, 2 * len(block_table))
        self.blocks[self.num_blocks : len(block_table)] = block_table[self.num_blocks :]
        self.num_blocks = len(block_table)
