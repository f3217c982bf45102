"""How much a step may hold while memory is short."""

from __future__ import annotations

GROW_AFTER = 64  # steps in a row that found memory


class StepLimit:
    """Halved by every step that finds too little memory, doubled by every GROW_AFTER that find enough, up to what the
    engine says that it takes."""

    def __init__(self, max_num_seqs: int, max_tokens: int) -> None:
        self.num_seqs = self._max_num_seqs = max_num_seqs
        self.num_tokens = self._max_tokens = max_tokens
        self._num_passed = 0  # steps since the last change

    def shrink(self, num_seqs: int, num_tokens: int) -> bool:
        """A step of so much found too little memory. False: no step is smaller."""
        self._num_passed = 0
        self.num_seqs, self.num_tokens = max(1, num_seqs // 2), max(1, num_tokens // 2)
        return max(num_seqs, num_tokens) > 1

    def passed(self) -> bool:
        """A step found enough. True: the next ones may hold more."""
        if self.num_tokens == self._max_tokens and self.num_seqs == self._max_num_seqs:
            return False
        self._num_passed += 1
        if self._num_passed < GROW_AFTER:
            return False
        self._num_passed = 0
        self.num_seqs = min(2 * self.num_seqs, self._max_num_seqs)
        self.num_tokens = min(2 * self.num_tokens, self._max_tokens)
        return True
