"""Which CUDA graph a decode batch runs in. Integers only."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_SMALL = (1, 2, 4, 8)
_FINE_STEP, _COARSE_STEP, _COARSE_FROM = 8, 16, 64


@dataclass(slots=True, frozen=True)
class GraphBuckets:
    """The batch sizes that graphs are captured for: 1, 2, 4, 8, then steps of 8, from 64 on of 16, up to the most
    sequences that run at once. A batch is padded to the next of them."""

    sizes: tuple[int, ...]  # ascending

    @classmethod
    def up_to(cls, max_num_seqs: int) -> GraphBuckets:
        sizes = {size for size in _SMALL if size < max_num_seqs} | {max_num_seqs}
        sizes |= set(range(2 * _FINE_STEP, min(max_num_seqs, _COARSE_FROM + 1), _FINE_STEP))
        sizes |= set(range(_COARSE_FROM, max_num_seqs, _COARSE_STEP))
        return cls(tuple(sorted(sizes)))

    @property
    def largest_first(self) -> tuple[int, ...]:
        """The order to capture in: what a smaller one needs fits into the memory that a larger one has left."""
        return self.sizes[::-1]

    def size_for(self, num_rows: int) -> int | None:
        """The bucket of a batch of so many rows; None where it is larger than all."""
        index = bisect_left(self.sizes, num_rows)
        return self.sizes[index] if index < len(self.sizes) else None

    def check_integrity(self) -> None:
        """Every size up to the largest has the least bucket that holds it, and little padding."""
        assert self.sizes == tuple(sorted(set(self.sizes)))
        assert self.sizes[0] == 1
        for rows in range(1, self.sizes[-1] + 1):
            bucket = self.size_for(rows)
            assert bucket is not None
            assert bucket >= rows
            assert not any(rows <= size < bucket for size in self.sizes)
            assert bucket < 2 * rows or bucket - rows < _COARSE_STEP
        assert self.size_for(self.sizes[-1] + 1) is None
